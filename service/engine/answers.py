"""From what the device made of an image to the answers: labels, masks, canvases. Runs on the pool."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from jaxtyping import Float

from service.engine.runner import LoadedModel
from service.imaging import png, render
from service.imaging.picture import Picture
from service.imaging.preprocess import seen_box
from service.stages import Stages
from service.types import BlocksAnswer, Label, Outcome, Prediction, RolloutAnswer

Overlay = Literal["none", "masked", "heatmap"]
Layout = Literal["row", "grid"]


@dataclass(frozen=True)
class Seen:
    """An image that went through the device.

    width, height: of the upright image, pixels.
    picture: kept only where it is drawn over.
    """

    width: int
    height: int
    picture: Picture | None
    outcome: Outcome


def prediction(model: LoadedModel, seen: Seen, top_k: int) -> Prediction:
    """The labels of what was seen, the top_k best."""
    labels = top_labels(seen.outcome.logits, model.manifest.labels, top_k)
    box = seen_box(seen.width, seen.height, model.manifest.preprocessing)
    return Prediction(model.manifest.name, seen.width, seen.height, box, labels)


def top_labels(logits: Float[np.ndarray, " classes"], names: list[str], top_k: int) -> list[Label]:
    """The softmax's top_k classes, highest first; equal scores in class order."""
    exp = np.exp(logits - logits.max())
    scores = exp / exp.sum()
    best = np.argsort(-scores, kind="stable")[:top_k]
    return [Label(int(i), names[i], float(scores[i])) for i in best]


def rollout_answer(
    model: LoadedModel, seen: Seen, top_k: int, overlay: Overlay, stages: Stages
) -> RolloutAnswer:
    """Renders a rollout: the mask, and the overlay where one is asked for."""
    assert seen.outcome.maps is not None
    with stages.measure("render"):
        answer, grid = prediction(model, seen, top_k), seen.outcome.maps[0]
        strips = partial(render.mask_strips, grid, seen.width, seen.height, answer.seen)
        grey = png.encode(render.to_grey(mask) for _, mask in strips())
        drawn = None
        if (picture := seen.picture) is not None:
            draw = render.masked if overlay == "masked" else render.heatmap
            drawn = png.encode(draw(mask, picture.rows(rows)) for rows, mask in strips())
        return RolloutAnswer(answer, grid, grey, drawn)


def blocks_answer(
    model: LoadedModel,
    seen: Seen,
    top_k: int,
    layout: Layout,
    max_side: int,
    max_pixels: int,
    stages: Stages,
) -> BlocksAnswer:
    """Renders the canvas of all blocks."""
    assert seen.outcome.maps is not None
    with stages.measure("render"):
        answer, grids = prediction(model, seen, top_k), seen.outcome.maps
        canvas = render.canvas(grids, seen.width, seen.height, answer.seen, layout, max_side, max_pixels)
        strips = (canvas.levels[rows] for rows in render.strips(canvas.levels.shape))
        picture = png.encode(strips, render.JET)
        return BlocksAnswer(answer, grids, picture, canvas.columns, canvas.panel, canvas.scale)
