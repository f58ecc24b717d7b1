"""A picture to a model's pixels, and which part of the image those pixels show.

Sizes and roundings follow torchvision's Resize and CenterCrop, which timm uses too: the longer side is
int(size * long / short), a crop starts at round((size - crop) / 2), and a crop larger than the image is
padded with black.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jaxtyping import Float
from PIL import Image

from service.imaging.picture import Picture
from service.types import RGB, Box, Pixels, Preprocess, Size

_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

_LONGEST = 16


def preprocess(picture: Picture, how: Preprocess) -> Pixels:
    """What a model takes: (3, *how.input_size), float32, (x / 255 - mean) / std. Raises BadImage."""
    image, box = picture.reduced(how.resized_side)
    size = picture.height, picture.width
    if isinstance(how.resize, int) and max(image.size) > _LONGEST * min(image.size):
        image = _middle(image)
        box = 0.0, 0.0, float(image.width), float(image.height)
        size = image.height, image.width
    height, width, top, left = _geometry(size, how)
    crop_height, crop_width = how.input_size
    resized = image.resize((width, height), _FILTERS[how.interpolation], box=box)
    crop = resized.crop((left, top, left + crop_width, top + crop_height))  # black past the edges
    return _normalised(np.asarray(crop.convert("RGB")), how.mean, how.std)


def seen_box(width: int, height: int, how: Preprocess) -> Box:
    """The part of an upright width x height image that the crop shows, in that image's pixels.

    It reaches past the image's edges where the crop is padded.
    """
    resized_height, resized_width, top, left = _geometry((height, width), how)
    crop_height, crop_width = how.input_size
    return Box(
        left * width / resized_width,
        top * height / resized_height,
        (left + crop_width) * width / resized_width,
        (top + crop_height) * height / resized_height,
    )


def _geometry(size: Size, how: Preprocess) -> tuple[int, int, int, int]:
    """Height and width after the resize, and where the crop starts in that: from the top, from the left."""
    height, width = _resized(size, how.resize)
    return height, width, _crop_start(height, how.input_size[0]), _crop_start(width, how.input_size[1])


def _resized(size: Size, resize: Size | int) -> Size:
    """(height, width) after the resize and before the crop."""
    if not isinstance(resize, int):
        return resize
    height, width = size
    if height <= width:
        return resize, int(resize * width / height)
    return int(resize * height / width), resize


def _middle(image: Image.Image) -> Image.Image:
    """The middle _LONGEST : 1 of a longer image; a resize by its shorter side would blow up all of it."""
    width, height = image.size
    x, y = max(0, (width - _LONGEST * height) // 2), max(0, (height - _LONGEST * width) // 2)
    return image.crop((x, y, width - x, height - y))


def _crop_start(size: int, crop: int) -> int:
    """Where a centre crop starts on a side of `size` pixels; below 0 where it must be padded."""
    return -((crop - size) // 2) if crop > size else round((size - crop) / 2)


def _normalised(image: RGB, mean: tuple[float, ...], std: tuple[float, ...]) -> Pixels:
    """(3, height, width) by table look-up: the plain formula's float32 values to the bit, faster than it."""
    pixels = np.empty((3, *image.shape[:2]), np.float32)
    for channel, table in enumerate(_tables(mean, std)):
        np.take(table, image[..., channel], out=pixels[channel], mode="clip")
    return pixels


@lru_cache(maxsize=64)
def _tables(mean: tuple[float, ...], std: tuple[float, ...]) -> Float[np.ndarray, "3 256"]:
    """(x / 255 - mean) / std in float32 for every byte x, a row a channel."""
    scaled = np.arange(256, dtype=np.float32) / np.float32(255)
    tables: Float[np.ndarray, "3 256"] = np.stack(
        [(scaled - np.float32(m)) / np.float32(s) for m, s in zip(mean, std, strict=True)]
    )
    return tables
