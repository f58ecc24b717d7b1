"""From drawn pictures to what a model takes and what is known of each of its patches."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from torch import Tensor

from service.datasets import shapes
from service.types import Size


def squashed_picture(
    seed: int, index: int, size: Size, objects: int, zoom: int, stretch: float
) -> shapes.Picture:
    """A picture that is drawn `stretch` times as tall and as narrow, and squashed to `size` as inputs are."""
    height, width = size
    drawn_size = round(height * stretch), round(width / stretch)
    drawn = shapes.picture(seed, index, drawn_size, objects, zoom)
    masks = [cv2.resize(mask.astype(np.uint8), (width, height)) > 0 for mask in drawn.masks]
    return shapes.Picture(cv2.resize(drawn.image, (width, height)), np.stack(masks), drawn.classes)


def to_pixels(images: UInt8[Tensor, "batch height width 3"]) -> Float[Tensor, "batch 3 height width"]:
    """0..255 to -1..1 (mean and std 0.5), channels first."""
    return images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def patch_shares(
    picture: shapes.Picture, patch: int, classes: int
) -> Float32[np.ndarray, "patches class_or_ground"]:
    """How much of each patch, in reading order, is of each class, and of ground (last)."""
    rows, columns = (side // patch for side in picture.image.shape[:2])
    shares = np.zeros((rows, columns, classes + 1), np.float32)
    for mask, kind in zip(picture.masks, picture.classes, strict=True):
        shares[..., kind] = patch_cover(mask, patch)
    shares[..., -1] = 1 - shares.sum(-1)
    return shares.reshape(-1, classes + 1)


def patch_cover(mask: Bool[np.ndarray, "height width"], patch: int) -> Float32[np.ndarray, "rows columns"]:
    """The share of each patch's pixels that the mask covers."""
    rows, columns = (side // patch for side in mask.shape)
    cut = mask[: rows * patch, : columns * patch].reshape(rows, patch, columns, patch)
    cover: Float32[np.ndarray, "rows columns"] = cut.mean((1, 3), dtype=np.float32)
    return cover
