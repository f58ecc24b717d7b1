"""Bytes from a stranger to an upright RGB image, or an error that says what is wrong with them.

Pillow decodes. Only the plugins of the accepted formats ever see the bytes; whatever else Pillow knows is
recognised by its first bytes and refused by name. A plugin's class is called directly instead of
`Image.open`: the size is then known before Pillow's process-wide pixel limit can interfere, and an MPO file
is simply its first JPEG.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Real
from PIL import ExifTags, Image, ImageCms
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from service.errors import BadImage, TooLarge, UnsupportedMedia
from service.types import RGB

_PLUGINS: dict[str, type[ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "GIF": GifImageFile,
    "BMP": BmpImageFile,
    "TIFF": TiffImageFile,
    "AVIF": AvifImageFile,
}

ACCEPTED = "JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF"

# What Pillow's plugins raise on broken files; found with its own corrupt samples and a mutator.
_BROKEN = (
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

# Formats that Pillow can't tell by a prefix or has no plugin for, by a pattern at the start of the file.
_STRANGERS = {
    "PDF": re.compile(rb"\s*%PDF-"),
    "SVG": re.compile(rb"(\xef\xbb\xbf)?\s*<(svg\b|(\?xml|!--|!DOCTYPE svg)[^\0]*<svg\b|!DOCTYPE svg)", re.I),
    "HEIC": re.compile(rb"....ftyp(hei[cmsx]|hev[cmsx]|(mif1|msf1)(?!.{4,64}avi[fs]))", re.S),
    "JPEG XL": re.compile(rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n"),
    "TGA": re.compile(
        rb".(\x01[\x01\x09]|\x00[\x02\x03\x0a\x0b]).{13}[\x08\x0f\x10\x18\x20][\x00-\x3f]", re.S
    ),
}

_TURNS = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_APPETITE = {"WEBP": 4, "AVIF": 3}
"""How many times the memory of other formats a pixel takes while it is decoded."""

_DRAFT_MARGIN = 4
_MAX_SCANS = 100
_MAX_SIDE = 65_535  # a JPEG's; a row of more would be handled as a whole
_STRIPE_PIXELS = 2**19


@dataclass(frozen=True)
class Picture:
    """A decoded image that may be smaller than its original.

    rgb: upright, uint8.
    width, height: of the upright original, pixels.
    """

    rgb: RGB
    width: int
    height: int


Take = Callable[[int], None]
"""Told how many pixels are about to be decoded; what it raises stops that."""


def decode(data: bytes, max_pixels: int, take: Take = lambda pixels: None) -> Picture:
    """The upright RGB image in `data`; of an animation or a multi-page file the first frame.

    EXIF orientation is applied (a corrupt EXIF block means none). Grey, palette, CMYK (without its ICC
    profile), YCbCr, HSV and LAB become RGB, and transparency lies over white. Deeper pixels come to 8 bits:
    16-bit ones by value / 257; 32-bit integers and floats, which name no white, by stretching the image's
    own smallest..largest finite value to 0..255.

    max_pixels: more than this in the header (for WebP a quarter of it, for AVIF a third) and nothing is
        decoded; nor is a side of over 65,535.
    take: asked before anything is decoded.

    Raises TooLarge (413), UnsupportedMedia (415: a known format that is not accepted) or BadImage (400).
    """
    return _decode(data, max_pixels, None, take)


def decode_draft(data: bytes, max_pixels: int, at_least: int, take: Take = lambda pixels: None) -> Picture:
    """As decode, for a caller to whom fewer pixels will do: a large image comes at a part of its size.

    at_least: the longer side, in pixels, of what the image will be resized to. Where 4 times that is left on
        both sides, libjpeg decodes at a half, a quarter or an eighth, a third of the time, and what is still
        too large is averaged, which saves the memory of its RGB. Preprocessed to 224 x 224, photographs of 7
        and 12 megapixels then differ from the exact path by 0.09 to 0.19 of 255 levels in the mean and by at
        most 3. Smaller images are decoded exactly.

    Raises what decode raises.
    """
    return _decode(data, max_pixels, at_least * _DRAFT_MARGIN, take)


def _decode(data: bytes, max_pixels: int, draft_side: int | None, take: Take) -> Picture:
    if not data:
        raise BadImage("The image is empty: 0 bytes arrived. Send the bytes of an image file.")
    name = _accepted_format(data)
    # a marker that no picture data holds: each scan goes over the whole picture; real files have ten or so
    if name == "JPEG" and (scans := data.count(b"\xff\xda")) > _MAX_SCANS:
        raise BadImage(f"The JPEG image has {scans} scans; {_MAX_SCANS} are allowed. Save it anew.")
    try:
        image = _PLUGINS[name](io.BytesIO(data))
        width, height = image.size
        if max(width, height) > _MAX_SIDE:
            raise TooLarge(f"The image is {width} x {height}; a side may have {_MAX_SIDE} pixels. Crop it.")
        if width * height > max_pixels // _APPETITE.get(name, 1):
            raise TooLarge(_too_many_pixels(name, width, height, max_pixels))
        if draft_side is not None:
            image.draft(None, (draft_side, draft_side))
        take(image.width * image.height)
        image.load()
        orientation = _orientation(image)
        shrink = 1 if draft_side is None else max(1, min(image.size) // draft_side)
        rgb = _rgb_array(image, shrink)
        if orientation in _TURNS:
            rgb = np.asarray(Image.fromarray(rgb).transpose(_TURNS[orientation]))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge(
            f"The {name} image has more than {max_pixels} pixels: {_sentence(error)} Send a smaller one."
        ) from error
    except _BROKEN as error:
        raise BadImage(
            f"The {name} image is truncated or corrupt: {_sentence(error)} Send the complete, undamaged file."
        ) from error
    if orientation in _TURNS and orientation >= 5:
        width, height = height, width
    return Picture(rgb, width, height)


def _too_many_pixels(name: str, width: int, height: int, max_pixels: int) -> str:
    told = f"The image has {width} x {height} = {width * height} pixels; the limit is {max_pixels}"
    if name not in _APPETITE:
        return f"{told}. Send a smaller one."
    limit = max_pixels // _APPETITE[name]
    return (
        f"{told}, and {limit} for {name}, which takes {_APPETITE[name]} times the memory. "
        "Send a smaller one, or a JPEG or PNG."
    )


def _accepted_format(data: bytes) -> str:
    """The accepted format that `data` starts like; UnsupportedMedia for another known one, else BadImage."""
    stranger = next((name for name, pattern in _STRANGERS.items() if pattern.match(data[:1024])), None)
    if stranger is None:
        if accepted := _registered_format(data, _PLUGINS):
            return accepted
        Image.init()  # Pillow registers all its plugins; only their prefix tests are used
        stranger = _registered_format(data, Image.OPEN.keys() - _PLUGINS.keys())
    if stranger:
        raise UnsupportedMedia(f"{stranger} files are not accepted. Send {ACCEPTED}.")
    raise BadImage(f"The {len(data)} bytes are no image of a known format. Send {ACCEPTED}.")


def _registered_format(data: bytes, names: Iterable[str]) -> str | None:
    """The first of Pillow's formats `names` (in alphabetical order) whose prefix test takes `data`."""
    prefix = data[:16].ljust(16, b"\0")
    for name in sorted(names):
        _, accept = Image.OPEN[name]
        if accept is not None and accept(prefix) is True:
            return name
    return None


def _sentence(error: Exception) -> str:
    """What Pillow said, or at least the error's name, with one full stop."""
    return (str(error) or type(error).__name__).rstrip(".") + "."


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of a loaded image, 1..8; 1 (upright) where the EXIF block is corrupt."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except _BROKEN:
        return 1


def _rgb_array(image: Image.Image, shrink: int) -> RGB:
    """Any mode as an RGB array, each `shrink` x `shrink` pixels averaged to one, as Pillow's reduce does it.

    In stripes: half a megapixel stays in the cache, and of a large image nothing large is made.
    """
    convert = _rgb_pixels
    if image.mode in ("I", "F"):
        convert = partial(_stretched, *_finite_range(image))
    if image.width * image.height <= _STRIPE_PIXELS and shrink == 1:
        return convert(image)
    rgb = np.empty((-(-image.height // shrink), -(-image.width // shrink), 3), np.uint8)
    for top, stripe in _stripes(image, shrink):
        pixels = convert(stripe)
        if shrink > 1:
            pixels = np.asarray(Image.fromarray(pixels).reduce(shrink))
        rgb[top // shrink : top // shrink + len(pixels)] = pixels
    return rgb


def _stripes(image: Image.Image, shrink: int = 1) -> Iterator[tuple[int, Image.Image]]:
    """The image cut across: (top row, rows of about _STRIPE_PIXELS, whole multiples of `shrink`)."""
    rows = max(1, _STRIPE_PIXELS // image.width // shrink) * shrink
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _finite_range(image: Image.Image) -> tuple[float, float]:
    """The smallest and the largest finite value of a 32-bit image; (0, 0) where there is none."""
    low, high = np.inf, -np.inf
    for _, stripe in _stripes(image):
        values = np.asarray(stripe, dtype=np.float64)
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
