"""Whatever holds an image -> the bytes that are sent."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps

from service.errors import BadImage

Image = str | Path | bytes | PIL.Image.Image | np.ndarray[Any, Any]
"""A path, an image file's bytes, a Pillow image, or a uint8 array: height x width (x 3, RGB)."""

_PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}


def image_bytes(image: Image) -> bytes:
    """The file's own bytes for a path or bytes; a lossless PNG for a Pillow image or an array."""
    match image:
        case bytes():
            return image
        case str() | Path():
            return Path(image).read_bytes()
        case PIL.Image.Image():
            return _png(_upright(image))
        case np.ndarray():
            return _png(_from_array(image))
    raise TypeError(
        f"An image is a path, bytes, a Pillow image or a NumPy array, not {type(image).__name__}."
    )


def _upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """As the file that it was opened from is shown: PNG would lose the EXIF orientation."""
    upright = PIL.ImageOps.exif_transpose(image)
    return upright if upright.mode in _PNG_MODES else upright.convert("RGB")


def _from_array(array: np.ndarray[Any, Any]) -> PIL.Image.Image:
    is_image = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if array.dtype != np.uint8 or not is_image or array.size == 0:
        raise BadImage(
            "An array must be uint8 and height x width x 3 (RGB) or height x width (grey); "
            f"this one is {array.dtype} of shape {array.shape}."
        )
    return PIL.Image.fromarray(np.ascontiguousarray(array))


def _png(image: PIL.Image.Image) -> bytes:
    """Compressed lightly: the wire is rarely slower than zlib's higher levels."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
