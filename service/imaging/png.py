"""A PNG writer for maps: smooth pictures, where each pixel differs little from its left neighbour.

Every row gets the filter Sub (PNG specification, 9.2), applied by one numpy subtraction, and ISA-L's deflate,
which is several times faster than zlib's at the same size. benchmarks/ has the figures.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable

import numpy as np
from isal import isal_zlib
from jaxtyping import UInt8

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _TRUECOLOUR, _PALETTE = 0, 2, 3
_SUB = 1
_LEVEL = 2


def encode(
    strips: Iterable[UInt8[np.ndarray, "rows width ..."]], palette: UInt8[np.ndarray, "256 3"] | None = None
) -> bytes:
    """A PNG file, 8 bits a channel, of a picture that comes in strips from top to bottom.

    strips: at least one, (rows, width) grey or (rows, width, 3) RGB pixels each, taken one after the other: a
        large picture need never be whole, and is filtered while it is in the cache.
    palette: makes (rows, width) pixels indices into these RGB colours: the same picture as palette[pixels],
        in a third of the bytes to filter and deflate.
    """
    deflate = isal_zlib.compressobj(_LEVEL)
    data: list[bytes] = []
    height = 0
    for strip in strips:
        height += len(strip)
        data.append(deflate.compress(_filtered(strip).data))
    data.append(deflate.flush())
    colour = _TRUECOLOUR if strip.ndim == 3 else _GREY if palette is None else _PALETTE
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", strip.shape[1], height, 8, colour, 0, 0, 0))
    colours = b"" if palette is None else _chunk(b"PLTE", palette.tobytes())
    parts = (_chunk(b"IDAT", part) for part in data if part)
    return b"".join((_SIGNATURE, head, colours, *parts, _chunk(b"IEND", b"")))


def _filtered(pixels: UInt8[np.ndarray, "rows width ..."]) -> UInt8[np.ndarray, "rows bytes"]:
    """Rows of a filter byte and the differences, modulo 256, from the pixel to the left."""
    rows = pixels.reshape(len(pixels), -1)
    step = rows.shape[1] // pixels.shape[1]
    filtered = np.empty((rows.shape[0], rows.shape[1] + 1), np.uint8)
    filtered[:, 0] = _SUB
    filtered[:, 1 : step + 1] = rows[:, :step]
    np.subtract(rows[:, step:], rows[:, :-step], out=filtered[:, step + 1 :])
    return filtered


def _chunk(kind: bytes, body: bytes) -> bytes:
    """Length, kind, body and checksum."""
    return b"".join(
        (struct.pack(">I", len(body)), kind, body, struct.pack(">I", zlib.crc32(body, zlib.crc32(kind))))
    )
