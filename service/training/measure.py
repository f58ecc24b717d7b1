"""What a model of the drawn pictures is worth: its accuracy, and where its rollout peaks."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from service.datasets import shapes
from service.explain.rollout import Rollout
from service.models.vit import VisionTransformer
from service.training.patches import patch_cover, squashed_picture, to_pixels

ROLLOUT = Rollout()
HELD_OUT_SEED = 1_000_003  # names the pictures that no training run may draw


class Scores(NamedTuple):
    """What became of a picture.

    label, predicted: the class of the largest object, and the model's.
    present: the predicted class is in the picture.
    touching: rollout's peak patch holds a pixel of an object; inside: at least half of its pixels are.
    chance: how many of the patches hold a pixel of an object: what a random peak would score.
    """

    label: int
    predicted: int
    present: bool
    touching: bool
    inside: bool
    chance: float


@torch.inference_mode()
def score(model: VisionTransformer, pictures: list[shapes.Picture]) -> list[Scores]:
    """The model's answers and its rollouts (heads averaged) on a batch of pictures."""
    images = torch.from_numpy(np.stack([picture.image for picture in pictures]))
    trace = model(to_pixels(images), ROLLOUT.needs)
    predicted, maps = trace.logits.argmax(-1).tolist(), ROLLOUT(trace).flatten(1)
    scores = []
    for picture, guess, peak in zip(pictures, predicted, maps.argmax(-1).tolist(), strict=True):
        cover = patch_cover(np.logical_or.reduce(picture.masks), model.arch.patch).ravel()
        touching, inside = bool(cover[peak] > 0), bool(cover[peak] >= 0.5)
        chance = float((cover > 0).mean())
        scores.append(Scores(picture.label, guess, guess in picture.classes, touching, inside, chance))
    return scores


def measure(
    model: VisionTransformer,
    count: int,
    objects: int = 1,
    aspect: float = 1.0,
    seed: int = HELD_OUT_SEED,
    batch: int = 50,
) -> dict[str, Any]:
    """Accuracy and where rollout's peak lies on `count` pictures of a seed, overall and by class.

    aspect: how many times as wide as tall the pictures are drawn, before they are squashed to the input.
    """
    scores: list[Scores] = []
    size, stretch = model.arch.trained_size, aspect**-0.5
    for first in range(0, count, batch):
        indices = range(first, min(count, first + batch))
        scores += score(model, [squashed_picture(seed, i, size, objects, 1, stretch) for i in indices])
    by_class = {
        name: _summary([s for s in scores if s.label == index]) for index, name in enumerate(shapes.CLASSES)
    }
    return {"seed": seed, "objects": objects, "aspect": aspect, **_summary(scores), "by_class": by_class}


def _summary(scores: list[Scores]) -> dict[str, float | None]:
    def share(values: list[float]) -> float | None:
        return round(float(np.mean(values)), 4) if values else None

    return {
        "pictures": len(scores),
        "accuracy": share([s.label == s.predicted for s in scores]),
        "predicted_class_present": share([s.present for s in scores]),
        "peak_touches_object": share([s.touching for s in scores]),
        "peak_half_inside_object": share([s.inside for s in scores]),
        "random_patch_touches_object": share([s.chance for s in scores]),
    }
