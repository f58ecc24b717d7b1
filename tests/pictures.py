"""Pictures for tests, from bytes and from arrays."""

import numpy as np
from PIL import Image

from service.imaging.decode import open_image
from service.imaging.picture import Picture

LIMIT = 64_000_000


def decoded(data: bytes, limit: int = LIMIT, at_least: int | None = None) -> Picture:
    opened = open_image(data, limit)
    if at_least is not None:
        opened.draft(at_least)
    return opened.decode()


def rgb_of(data: bytes, limit: int = LIMIT) -> np.ndarray:
    """All of it, upright."""
    return decoded(data, limit).rows(slice(None))


def upright(pixels: np.ndarray) -> Picture:
    """A picture of these pixels."""
    return Picture("PNG", Image.fromarray(pixels), 1, pixels.shape[1], pixels.shape[0])
