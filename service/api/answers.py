"""The engine's answers as responses: JSON with base64 PNGs, or the picture itself."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from dataclasses import astuple

import numpy as np
from jaxtyping import Float
from starlette.responses import Response

from service.api.schemas import (
    BlocksCanvas,
    BlocksOptions,
    BlocksResponse,
    ImageSize,
    ModelCard,
    ModelRef,
    PredictResponse,
    RolloutMap,
    RolloutOptions,
    RolloutResponse,
    ScoredLabel,
    SeenImage,
)
from service.engine.engine import Engine
from service.engine.runner import LoadedModel
from service.types import BlocksAnswer, Label, Prediction, RolloutAnswer

JSON = "application/json"
PNG = "image/png"
MAX_LABELS_HEADER_BYTES = 8192


def predict_response(model: LoadedModel, prediction: Prediction) -> PredictResponse:
    """The answer of /predict."""
    return PredictResponse(
        model=model_ref(model),
        image=SeenImage(
            width=prediction.width, height=prediction.height, seen=list(astuple(prediction.seen))
        ),
        labels=[scored(label) for label in prediction.labels],
    )


def rollout_json(model: LoadedModel, answer: RolloutAnswer, options: RolloutOptions) -> bytes:
    """The JSON of /attention/rollout."""
    rows, columns = answer.grid.shape
    rollout = RolloutMap(
        mask=base64_text(answer.mask),
        overlay=None if answer.overlay is None else base64_text(answer.overlay),
        grid=answer.grid.tolist() if options.grid else None,
        grid_size=[rows, columns],
        min=float(answer.grid.min()),
        max=float(answer.grid.max()),
        head_fusion=options.head_fusion,
        discard_ratio=options.discard_ratio,
    )
    head = predict_response(model, answer.prediction)
    return json_bytes(
        RolloutResponse(model=head.model, image=head.image, labels=head.labels, rollout=rollout)
    )


def blocks_json(model: LoadedModel, answer: BlocksAnswer, options: BlocksOptions) -> bytes:
    """The JSON of /attention/blocks."""
    count, rows, columns = answer.grids.shape
    height, width = answer.panel
    blocks = BlocksCanvas(
        canvas=base64_text(answer.canvas),
        count=count,
        layout=options.layout,
        columns=answer.columns,
        panel=ImageSize(width=width, height=height),
        scale=answer.scale,
        grid_size=[rows, columns],
        grids=answer.grids.tolist() if options.grids else None,
        min=per_block(answer.grids.min(axis=(1, 2))),
        max=per_block(answer.grids.max(axis=(1, 2))),
    )
    head = predict_response(model, answer.prediction)
    return json_bytes(BlocksResponse(model=head.model, image=head.image, labels=head.labels, blocks=blocks))


def picture(png: bytes, prediction: Prediction) -> Response:
    """The picture itself, with the labels in a header."""
    labels = labels_header(prediction.labels)
    return Response(png, media_type=PNG, headers={"X-Labels": labels, "Vary": "Accept"})


def labels_header(labels: Iterable[Label]) -> str:
    """The labels as ASCII JSON: as many, best first, as proxies and clients take in a header."""
    entries: list[str] = []
    room = MAX_LABELS_HEADER_BYTES
    for label in labels:
        entry = json.dumps(scored(label).model_dump()).replace("\x7f", "\\u007f")
        room -= len(entry) + 2
        if room < 0:
            break
        entries.append(entry)
    return f"[{', '.join(entries)}]"


def model_card(engine: Engine, model: LoadedModel) -> ModelCard:
    """What /models says of a model."""
    manifest = model.manifest
    height, width = manifest.preprocessing.input_size
    return ModelCard(
        name=manifest.name,
        family=manifest.family,
        digest=manifest.digest,
        source=manifest.source,
        licence=manifest.licence,
        input_size=[height, width],
        classes=manifest.architecture.classes,
        blocks=manifest.architecture.depth,
        heads=manifest.architecture.heads,
        device=model.device,
        precision=model.precision,
        runtime=model.forward.runtime,
        default=manifest.name == next(iter(engine.models)),
        explains=engine.explains(model),
    )


def model_ref(model: LoadedModel) -> ModelRef:
    """Which weights answered."""
    return ModelRef(name=model.manifest.name, family=model.manifest.family, digest=model.manifest.digest)


def scored(label: Label) -> ScoredLabel:
    """A label as JSON has it."""
    return ScoredLabel(index=label.index, label=label.label, score=label.score)


def base64_text(data: bytes) -> str:
    """Bytes as a JSON string can hold them."""
    return base64.b64encode(data).decode("ascii")


def json_bytes(response: RolloutResponse | BlocksResponse) -> bytes:
    """The response's JSON, written by pydantic's core straight to bytes."""
    return response.__pydantic_serializer__.to_json(response)


def per_block(values: Float[np.ndarray, " block"]) -> list[float]:
    """One number a block."""
    return [float(value) for value in values]
