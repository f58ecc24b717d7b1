"""What the methods return: the JSON of the HTTP interface, made flat, its pictures and grids opened."""

from __future__ import annotations

import base64
import binascii
import io
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from pydantic import PlainValidator, TypeAdapter


@dataclass(frozen=True)
class Png:
    """A picture as the server sent it: `bytes` is a whole PNG file."""

    bytes: bytes = field(repr=False)

    def image(self) -> PIL.Image.Image:
        """The picture as a Pillow image, decoded: grey or RGB."""
        image = PIL.Image.open(io.BytesIO(self.bytes))
        return image.convert("RGB" if image.mode == "P" else image.mode)

    def array(self) -> NDArray[np.uint8]:
        """The picture as uint8: height x width for grey, height x width x 3 for RGB."""
        return np.asarray(self.image())

    def save(self, path: str | Path) -> None:
        """Writes the file whole or not at all: under another name first, then renamed."""
        path = Path(path)
        part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
        try:
            part.write_bytes(self.bytes)
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def _from_base64(text: Any) -> Png:
    try:
        return Png(base64.b64decode(text, validate=True))
    except (TypeError, binascii.Error) as error:
        raise ValueError("not base64") from error


PngField = Annotated[Png, PlainValidator(_from_base64)]
Floats = Annotated[NDArray[np.float32], PlainValidator(lambda nested: np.asarray(nested, np.float32))]


@dataclass(frozen=True)
class Model:
    """Which weights answered."""

    name: str
    family: str
    digest: str


@dataclass(frozen=True)
class ModelInfo(Model):
    """A model that the server has loaded.

    input_size: (height, width) in pixels that the model sees. default: it answers when no model is named.
    explains: the explanations that it can give.
    """

    source: str
    licence: str | None
    input_size: tuple[int, int]
    classes: int
    blocks: int
    heads: int
    device: str
    precision: str
    runtime: str
    default: bool
    explains: list[str]


@dataclass(frozen=True)
class Label:
    """A class and its softmax probability over all classes."""

    index: int
    label: str
    score: float


@dataclass(frozen=True)
class Size:
    """Pixels."""

    width: int
    height: int


@dataclass(frozen=True)
class Prediction:
    """What the model saw in a picture.

    width, height: of the upright picture, pixels. labels: highest score first.
    seen: the part that the model saw: left, top, right, bottom, pixels.
    """

    model: Model
    width: int
    height: int
    seen: tuple[float, float, float, float]
    labels: list[Label]


@dataclass(frozen=True)
class Rollout(Prediction):
    """What the model looked at, over all its blocks.

    mask: 8-bit grey, the picture's size. overlay: RGB, or None where none was asked for.
    grid: the raw map on the patch grid, or None where it was not asked for; min and max are its.
    grid_size: (rows, columns).
    """

    mask: PngField
    overlay: PngField | None
    grid: Floats | None
    grid_size: tuple[int, int]
    min: float
    max: float
    head_fusion: str
    discard_ratio: float


@dataclass(frozen=True)
class Blocks(Prediction):
    """What each block looked at.

    canvas: RGB, one panel a block, `columns` panels in a row. panel: a panel's size; scale: that over
    the picture's.
    grids: the raw maps (block, row, column), or None where they were not asked for; min and max are
    theirs, one a block. grid_size: (rows, columns).
    """

    canvas: PngField
    count: int
    layout: str
    columns: int
    panel: Size
    scale: float
    grid_size: tuple[int, int]
    grids: Floats | None
    min: list[float]
    max: list[float]


_prediction = TypeAdapter(Prediction)
_rollout = TypeAdapter(Rollout)
_blocks = TypeAdapter(Blocks)
_models = TypeAdapter(list[ModelInfo])


def read_prediction(answer: dict[str, Any]) -> Prediction:
    """Reads the JSON of POST /predict."""
    return _prediction.validate_python({**answer, **answer["image"]})


def read_rollout(answer: dict[str, Any]) -> Rollout:
    """Reads the JSON of POST /attention/rollout."""
    return _rollout.validate_python({**answer, **answer["image"], **answer["rollout"]})


def read_blocks(answer: dict[str, Any]) -> Blocks:
    """Reads the JSON of POST /attention/blocks."""
    return _blocks.validate_python({**answer, **answer["image"], **answer["blocks"]})


def read_models(answer: dict[str, Any]) -> list[ModelInfo]:
    """Reads the JSON of GET /models."""
    return _models.validate_python(answer["models"])
