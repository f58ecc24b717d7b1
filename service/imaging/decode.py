"""Bytes from a stranger to a picture, or an error that says what is wrong with them.

Pillow decodes. Only the plugins of the accepted formats ever see the bytes; whatever else Pillow knows is
recognised by its first bytes and refused by name. A plugin's class is called directly instead of
`Image.open`: the size is then known before Pillow's process-wide pixel limit can interfere, and an MPO file
is simply its first JPEG.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from PIL import ExifTags, Image
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from service.errors import BadImage, TooLarge, UnsupportedMedia
from service.imaging.picture import BROKEN, MARGIN, SWAPPED, Picture, sentence, told_as_broken

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

_APPETITE = {"WEBP": 4, "AVIF": 3, "progressive JPEG": 2}
"""How many times the memory of other formats a pixel takes while it is decoded."""

_MAX_SCANS = 100
_MAX_SIDE = 65_535  # a JPEG's; a row of more would be handled as a whole


@dataclass(frozen=True)
class Opened:
    """An image whose header was read; nothing of it is decoded yet.

    name: of its format.
    width, height: in its header, pixels.
    """

    name: str
    width: int
    height: int
    _image: ImageFile

    @property
    def pixels(self) -> int:
        """How many decoding makes."""
        return self._image.width * self._image.height

    def draft(self, at_least: int) -> None:
        """Says that a smaller picture will do, whose sides will be resized to so many pixels.

        Where MARGIN times that is left on both sides, libjpeg decodes at a half, a quarter or an eighth, in
        0.4 to 0.7 of the time. Preprocessed to 224 x 224, photographs of 6 to 20 megapixels then differ from
        the exact path by 0.11 to 0.28 of 255 levels in the mean and by at most 3.
        """
        with _told(self.name):
            self._image.draft(None, (at_least * MARGIN, at_least * MARGIN))

    def decode(self) -> Picture:
        """The picture; of an animation or a multi-page file the first frame. Once only.

        EXIF orientation is applied (a corrupt EXIF block means none). Grey, palette, CMYK (without its ICC
        profile), YCbCr, HSV and LAB become RGB, and transparency lies over white. Deeper pixels come to 8
        bits: 16-bit ones by value / 257; 32-bit integers and floats, which name no white, by stretching the
        image's own smallest..largest finite value to 0..255.

        Raises BadImage (400) or, where a format's header told less than there is, TooLarge (413).
        """
        image: Image.Image = self._image
        with _told(self.name):
            image.load()
            orientation = _orientation(image)
            if self.name in _APPETITE:
                image = image.copy()  # which lets go of the decoder and its own copies
        width, height = self.width, self.height
        if orientation in SWAPPED:
            width, height = height, width
        return Picture(self.name, image, orientation, width, height)


def open_image(data: bytes, max_pixels: int) -> Opened:
    """Reads the header of the image in `data`, and what is wrong with it.

    max_pixels: more than this in the header (for WebP a quarter of it, for AVIF a third, for a progressive
        JPEG half) is refused, and so is a side of over 65,535.

    Raises TooLarge (413), UnsupportedMedia (415: a known format that is not accepted) or BadImage (400).
    """
    if not data:
        raise BadImage("The image is empty: 0 bytes arrived. Send the bytes of an image file.")
    name = _accepted_format(data)
    # a marker that no picture data holds: each scan goes over the whole picture; real files have ten or so
    if name == "JPEG" and (scans := data.count(b"\xff\xda")) > _MAX_SCANS:
        raise BadImage(f"The JPEG image has {scans} scans; {_MAX_SCANS} are allowed. Save it anew.")
    with _told(name):
        image = _PLUGINS[name](io.BytesIO(data))
        width, height = image.size
    if max(width, height) > _MAX_SIDE:
        raise TooLarge(f"The image is {width} x {height}; a side may have {_MAX_SIDE} pixels. Crop it.")
    progressive = name == "JPEG" and "progressive" in image.info  # a PNG's texts are in its info too
    kind = "progressive JPEG" if progressive else name
    if width * height > max_pixels // _APPETITE.get(kind, 1):
        raise TooLarge(_too_many_pixels(kind, width, height, max_pixels))
    return Opened(name, width, height, image)


@contextmanager
def _told(name: str) -> Iterator[None]:
    """What Pillow raises on a broken or too large file of that format becomes BadImage or TooLarge."""
    try:
        with told_as_broken(name):
            yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge(
            f"The {name} image has too many pixels: {sentence(error)} Send a smaller one."
        ) from error


def _too_many_pixels(kind: str, width: int, height: int, max_pixels: int) -> str:
    told = f"The image has {width} x {height} = {width * height} pixels; the limit is {max_pixels}"
    if kind not in _APPETITE:
        return f"{told}. Send a smaller one."
    limit = max_pixels // _APPETITE[kind]
    return (
        f"{told}, and {limit} for {kind}, which takes {_APPETITE[kind]} times the memory. "
        "Send a smaller one, or a plain JPEG or PNG."
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


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of a loaded image, 1..8; 1 (upright) where the EXIF block is corrupt."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except BROKEN:
        return 1
