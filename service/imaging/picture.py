"""A decoded picture of any mode, turned upright and made RGB only where it is looked at.

Large ones are looked at in strips: half a megapixel stays in the cache, and nothing else large is made.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from jaxtyping import Real
from PIL import Image, ImageCms

from service.errors import BadImage
from service.types import RGB

MARGIN = 3
"""How many times the side that it will be resized to a picture keeps when it is reduced.

Pillow's documentation says of its `reducing_gap` that from 3 on the result can hardly be told from one
without it. With 4, 12 megapixels would be decoded at a half instead of a quarter, and take a quarter longer.
"""

_TURNS = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SWAPPED = {5, 6, 7, 8}
"""EXIF orientations in which width and height change places."""
_FROM_THE_RIGHT = {2, 3, 6, 7}  # what is first in the file is on the right, or at the bottom, when upright
_FROM_THE_BOTTOM = {3, 4, 7, 8}

BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    EOFError,
    OverflowError,
    MemoryError,
    RuntimeError,  # libavif's
    struct.error,
    zlib.error,
)
"""What Pillow raises on broken files; found with its own corrupt samples and a mutator."""

_STRIP_PIXELS = 2**19


@dataclass(frozen=True)
class Picture:
    """A decoded image, as it lies in its file.

    name: of its format.
    image: loaded, of any mode; it may be a draft, at a part of the original's size (rounded up).
    orientation: EXIF's, 1..8; 1 is upright.
    width, height: of the upright original, pixels.
    """

    name: str
    image: Image.Image
    orientation: int
    width: int
    height: int

    def rows(self, rows: slice) -> RGB:
        """Those rows of the upright image. Of a picture that is no draft."""
        top, bottom, _ = rows.indices(self.height)
        if self.orientation in _FROM_THE_BOTTOM:
            top, bottom = self.height - bottom, self.height - top
        swapped = self.orientation in SWAPPED
        width, height = self.image.size
        box = (top, 0, bottom, height) if swapped else (0, top, width, bottom)
        part = self.image if box == (0, 0, width, height) else self.image.crop(box)
        with told_as_broken(self.name):
            pixels = self._convert(part)
        if self._turn is None:
            return pixels
        return np.asarray(self._turned(Image.fromarray(pixels)))

    def reduced(self, at_least: int) -> tuple[Image.Image, tuple[float, float, float, float]]:
        """The upright picture, RGB or grey, small enough to handle, and where in it the original lies.

        at_least: the side, in pixels, that it will be resized to. Where MARGIN times that is left on both
            sides, each 2 x 2, 3 x 3 ... pixels are averaged to one, as Pillow's reduce does it.
        The second is (left, top, right, bottom), in pixels: averages at an edge may be of fewer.

        Raises BadImage.
        """
        shrink = max(1, min(self.image.size) // (at_least * MARGIN))
        with told_as_broken(self.name):
            image = self._turned(self._reduced(shrink))
        times = round(max(self.width, self.height) / max(image.size))
        width, height = self.width / times, self.height / times
        left = image.width - width if self.orientation in _FROM_THE_RIGHT else 0.0
        top = image.height - height if self.orientation in _FROM_THE_BOTTOM else 0.0
        return image, (left, top, left + width, top + height)

    @property
    def _turn(self) -> Image.Transpose | None:
        return _TURNS.get(self.orientation)

    def _turned(self, image: Image.Image) -> Image.Image:
        return image if self._turn is None else image.transpose(self._turn)

    def _reduced(self, shrink: int) -> Image.Image:
        image = self.image
        if image.mode in ("RGB", "L") and not image.has_transparency_data:
            return image if shrink == 1 else image.reduce(shrink)
        if image.width * image.height <= _STRIP_PIXELS and shrink == 1:
            return Image.fromarray(self._convert(image))
        small = Image.new("RGB", (-(-image.width // shrink), -(-image.height // shrink)))
        for top, strip in _strips(image, shrink):
            small.paste(Image.fromarray(self._convert(strip)).reduce(shrink), (0, top // shrink))
        return small

    @cached_property
    def _convert(self) -> Callable[[Image.Image], RGB]:
        """What makes any part of this image RGB."""
        if self.image.mode in ("I", "F"):
            return partial(_stretched, *_finite_range(self.image))
        return _rgb_pixels


@contextmanager
def told_as_broken(name: str) -> Iterator[None]:
    """What Pillow raises on a broken file of that format becomes BadImage (400)."""
    try:
        yield
    except BROKEN as error:
        raise BadImage(
            f"The {name} image is truncated or corrupt: {sentence(error)} Send the complete, undamaged file."
        ) from error


def sentence(error: Exception) -> str:
    """What Pillow said, or at least the error's name, with one full stop."""
    return (str(error) or type(error).__name__).rstrip(".") + "."


def _strips(image: Image.Image, shrink: int = 1) -> Iterator[tuple[int, Image.Image]]:
    """The image cut across: (top row, rows of about _STRIP_PIXELS, whole multiples of `shrink`)."""
    rows = max(1, _STRIP_PIXELS // image.width // shrink) * shrink
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _finite_range(image: Image.Image) -> tuple[float, float]:
    """The smallest and the largest finite value of a 32-bit image; (0, 0) where there is none."""
    low, high = np.inf, -np.inf
    for _, strip in _strips(image):
        values = np.asarray(strip, dtype=np.float64)
        finite = values[np.isfinite(values)]
        low, high = min(low, finite.min(initial=np.inf)), max(high, finite.max(initial=-np.inf))
    return (float(low), float(high)) if low <= high else (0.0, 0.0)


def _stretched(low: float, high: float, image: Image.Image) -> RGB:
    """A 32-bit image with low..high as 0..255; what is not finite is black."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), nan=low, posinf=low, neginf=low)
    return _grey_pixels((values - low) / ((high - low) or 1.0) * 255)


def _rgb_pixels(image: Image.Image) -> RGB:
    """An image of any mode but 32-bit as RGB; a 16-bit value that is named transparent is white."""
    if not image.mode.startswith("I;16"):
        return np.asarray(_rgb_image(image))
    values = np.asarray(image).astype(np.uint32)
    grey = (values + 128) // 257
    if isinstance(transparent := image.info.get("transparency"), int):
        grey[values == transparent] = 255
    return _grey_pixels(grey)


def _grey_pixels(grey: Real[np.ndarray, "height width"]) -> RGB:
    """Values of 0..255, truncated, in all three channels."""
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)


def _rgb_image(image: Image.Image) -> Image.Image:
    """Any 8-bit mode as RGB, transparency over white."""
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None  # None is for inPlace only
        return converted
    if image.has_transparency_data:
        straight = image.convert("LA") if image.mode == "La" else image
        rgba = straight.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(rgba, mask=rgba)
        return white
    return image if image.mode == "RGB" else image.convert("RGB")
