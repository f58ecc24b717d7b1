"""What clients send as options and get as answers: the models that OpenAPI is made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core.core_schema import NullableSchema

from service.types import HeadFusion

Row = list[float]
Grid = list[Row]
Pair = Annotated[list[int], Field(min_length=2, max_length=2)]


@dataclass(frozen=True)
class NeverNull:
    """Marks a parameter that may be left out: None stands for that, and null is no value of it in OpenAPI."""

    def __get_pydantic_json_schema__(
        self, schema: NullableSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return handler(schema["schema"])


class PredictOptions(BaseModel):
    """The query parameters of /predict."""

    model_config = ConfigDict(extra="forbid")

    top_k: int = Field(
        5, ge=1, description="How many labels: 1 to the model's number of classes (the default: at most 5)."
    )
    model: Annotated[str | None, NeverNull()] = Field(
        None,
        min_length=1,
        max_length=100,
        description="Name of a loaded model; by default the server's first.",
    )


class RolloutOptions(PredictOptions):
    """The query parameters of /attention/rollout."""

    head_fusion: HeadFusion = Field("mean", description="How the heads of a block become one matrix.")
    discard_ratio: float = Field(
        0.0,
        ge=0,
        lt=1,
        allow_inf_nan=False,
        description="Share of each row's smallest attentions to drop, never the CLS column.",
    )
    overlay: Literal["none", "masked", "heatmap"] = Field(
        "none", description="masked: the mask times the image; heatmap: JET colours half and half with it."
    )
    grid: bool = Field(False, description="Whether to return the raw floats as well.")


class BlocksOptions(PredictOptions):
    """The query parameters of /attention/blocks."""

    layout: Literal["row", "grid"] = Field(
        "row", description="row: panels left to right; grid: near-square, in reading order."
    )
    grids: bool = Field(False, description="Whether to return the raw floats as well.")
    max_side: int = Field(
        0, ge=0, le=65_535, description="Longest side of a panel, pixels; 0: the image's own size."
    )


class ModelRef(BaseModel):
    """Which weights answered."""

    name: str
    family: str
    digest: str = Field(description="Of the weights: sha256: and 64 hex digits.")


class ImageSize(BaseModel):
    """Size of the upright image, pixels."""

    width: int
    height: int


class SeenImage(ImageSize):
    """The upright image, and the part of it that the model saw."""

    seen: Annotated[list[float], Field(min_length=4, max_length=4)] = Field(
        description="[left, top, right, bottom] in pixels; past the edges where the model's crop is padded."
    )


class ScoredLabel(BaseModel):
    """A class and its softmax probability over all classes."""

    index: int
    label: str
    score: float


class PredictResponse(BaseModel):
    """What the image shows; labels with the highest score first."""

    model: ModelRef
    image: SeenImage
    labels: list[ScoredLabel]


class RolloutMap(BaseModel):
    """What the model looked at, over all its blocks."""

    mask: str = Field(description="Base64 PNG, 8-bit grey, the upright image's size.")
    overlay: str | None = Field(description="Base64 PNG, RGB, where one was asked for.")
    grid: Grid | None = Field(description="The raw floats, where they were asked for.")
    grid_size: Pair = Field(description="[rows, columns]")
    min: float
    max: float
    head_fusion: HeadFusion
    discard_ratio: float


class RolloutResponse(PredictResponse):
    """Labels and attention rollout."""

    rollout: RolloutMap


class BlocksCanvas(BaseModel):
    """What each block looked at."""

    canvas: str = Field(
        description="Base64 PNG, RGB colours in a palette: a panel a block. (Pillow: convert('RGB').)"
    )
    count: int = Field(description="Number of blocks.")
    layout: Literal["row", "grid"]
    columns: int = Field(description="Panels in one row of the canvas.")
    panel: ImageSize
    scale: float = Field(description="A panel's size over the image's.")
    grid_size: Pair = Field(description="[rows, columns]")
    grids: list[Grid] | None = Field(description="The raw floats a block, where they were asked for.")
    min: list[float] = Field(description="A number a block.")
    max: list[float] = Field(description="A number a block.")


class BlocksResponse(PredictResponse):
    """Labels and the canvas of every block's map."""

    blocks: BlocksCanvas


class ModelCard(ModelRef):
    """A loaded model."""

    source: str = Field(description="Where the weights came from.")
    licence: str | None
    input_size: Pair = Field(description="[height, width] in pixels that the model sees.")
    classes: int
    blocks: int
    heads: int
    device: str
    precision: str
    runtime: str = Field(description="What computes: torch or openvino.")
    default: bool = Field(description="Whether requests that name no model get this one.")
    explains: list[str] = Field(description="The /attention routes that it can answer.")


class ModelsResponse(BaseModel):
    """The loaded models, the default one first."""

    models: list[ModelCard]


class Health(BaseModel):
    """A health check that passed."""

    status: Literal["ok"] = "ok"


class ParameterError(BaseModel):
    """A parameter at fault."""

    parameter: str
    detail: str


class Problem(BaseModel):
    """Problem details (RFC 9457): every error of this service has this body."""

    type: str = Field(description="urn:vit-attention:problem: and a name that never changes.")
    title: str
    status: int
    detail: str = Field(description="What is wrong with this request, and the remedy.")
    instance: str = Field(description="Path of the request.")
    request_id: str
    errors: list[ParameterError] | None = Field(None, description="One entry a parameter at fault.")
