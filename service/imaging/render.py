"""Maps on the patch grid to pictures in the upright image's pixels: mask, overlays, block canvas.

With the box at the whole image these are the seed script's pictures to the pixel: map / maximum, cv2.resize
(bilinear), times 255, truncated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

from service.types import RGB, Box, Size

Grid = Float[np.ndarray, "row column"]
Mask = Float[np.ndarray, "height width"]
Grey = UInt8[np.ndarray, "height width"]
Layout = Literal["row", "grid"]

_STRIP_PIXELS = 2**19
_WHOLE_PIXELS = 2**23

_LEVELS = np.arange(256, dtype=np.uint8)
JET: UInt8[np.ndarray, "256 3"] = cv2.applyColorMap(_LEVELS, cv2.COLORMAP_JET).reshape(256, 3)[:, ::-1]
"""OpenCV's JET colours, red first."""


@dataclass(frozen=True)
class Canvas:
    """The maps of all blocks in one picture.

    levels: 0..255, a place in JET each: the picture is JET[levels].
    columns: panels in a row.
    panel: (height, width) of a panel, pixels.
    scale: a panel's size over the image's, at most 1 (before rounding to whole pixels).
    """

    levels: Grey
    columns: int
    panel: Size
    scale: float


def mask(grid: Grid, width: int, height: int, box: Box) -> Mask:
    """The map over the upright width x height image: float32, 0..1, its peak's cell 1, 0 outside the box.

    box: what the model saw (preprocess.seen_box); its edges are rounded to whole pixels.
    """
    scaled = _scaled(grid)
    left, top, right, bottom = round(box.left), round(box.top), round(box.right), round(box.bottom)
    if (left, top, right, bottom) == (0, 0, width, height):
        return cv2.resize(scaled, (width, height))
    seen = cv2.resize(scaled, (max(1, right - left), max(1, bottom - top)))
    seen = seen[max(0, -top) : height - top, max(0, -left) : width - left]
    placed = np.zeros((height, width), np.float32)
    top, left = max(0, top), max(0, left)
    placed[top : top + seen.shape[0], left : left + seen.shape[1]] = seen
    return placed


def strips(size: Size) -> Iterator[slice]:
    """The rows of a (height, width) picture in strips that stay in the cache, from top to bottom."""
    height, width = size
    rows = max(1, _STRIP_PIXELS // width)
    return (slice(top, top + rows) for top in range(0, height, rows))


def mask_strips(grid: Grid, width: int, height: int, box: Box) -> Iterator[tuple[slice, Mask]]:
    """`mask` in strips, each with its rows of the picture.

    A large one, whose floats would take hundreds of megabytes, is never whole: numpy stretches it downwards
    strip by strip, and rounds otherwise than OpenCV in the last bit (one pixel of 100,000 is a level off).
    """
    if width * height <= _WHOLE_PIXELS:
        whole = mask(grid, width, height, box)
        yield from ((rows, whole[rows]) for rows in strips((height, width)))
        return
    left, right = round(box.left), round(box.right)
    across = cv2.resize(_scaled(grid), (max(1, right - left), len(grid)))[:, max(0, -left) : width - left]
    left = max(0, left)
    for rows in strips((height, width)):
        y = np.arange(height)[rows]
        strip = np.zeros((len(y), width), np.float32)
        strip[:, left : left + across.shape[1]] = _stretched(across, y, round(box.top), round(box.bottom))
        yield rows, strip


def to_grey(mask: Mask) -> Grey:
    """The mask times 255, truncated."""
    return (mask * 255).astype(np.uint8)


def masked(mask: Mask, image: RGB) -> RGB:
    """The image times the mask, truncated."""
    faded: RGB = (mask[..., None] * image).astype(np.uint8)
    return faded


def heatmap(mask: Mask, image: RGB) -> RGB:
    """The mask's JET colours and the image, half and half."""
    return cv2.addWeighted(JET[to_grey(mask)], 0.5, image, 0.5, 0)


def canvas(
    grids: Float[np.ndarray, "block row column"],
    width: int,
    height: int,
    box: Box,
    layout: Layout,
    max_side: int,
    max_pixels: int,
) -> Canvas:
    """A JET panel a block, each scaled to its own maximum, in reading order.

    width, height: of the upright image, pixels; a panel's size unless a limit makes it smaller.
    box: what the model saw of it; 0 outside.
    layout: `row` puts all panels side by side; `grid` is near-square, unused places 0.
    max_side: pixels of a panel's longer side at most; 0 is the image's own.
    max_pixels: of the canvas at most; a larger one is scaled down evenly (a side keeps at least 1 pixel).
    """
    count = len(grids)
    columns = count if layout == "row" else math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    scale = min(1.0, max_side / max(width, height)) if max_side else 1.0
    scale *= min(1.0, math.sqrt(max_pixels / (rows * columns * (width * scale) * (height * scale))))
    panel_height, panel_width = max(1, int(height * scale)), max(1, int(width * scale))
    across, down = panel_width / width, panel_height / height
    small_box = Box(box.left * across, box.top * down, box.right * across, box.bottom * down)
    levels = np.zeros((rows * panel_height, columns * panel_width), np.uint8)
    for index, grid in enumerate(grids):
        top, left = index // columns * panel_height, index % columns * panel_width
        panel = to_grey(mask(grid, panel_width, panel_height, small_box))
        levels[top : top + panel_height, left : left + panel_width] = panel
    return Canvas(levels, columns, (panel_height, panel_width), scale)


def _stretched(
    across: Float[np.ndarray, "row width"], y: Int[np.ndarray, " height"], top: int, bottom: int
) -> Mask:
    """The rows `y` of a picture in which `across` fills those from top to bottom, linearly; 0 elsewhere."""
    last = len(across) - 1
    place = np.clip((y - top + 0.5) * len(across) / max(1, bottom - top) - 0.5, 0, last)
    above = place.astype(int)
    share = (place - above).astype(np.float32)[:, None]
    stretched = np.empty((len(y), across.shape[1]), np.float32)
    for row in np.unique(above):
        between = slice(*np.searchsorted(above, (row, row + 1)))
        np.multiply(across[min(row + 1, last)] - across[row], share[between], out=stretched[between])
        stretched[between] += across[row]
    stretched[(y < top) | (y >= bottom)] = 0
    return stretched


def _scaled(grid: Grid) -> Grid:
    """The grid over its maximum, float32; zeros where nothing is above 0."""
    peak = grid.max()
    scaled: Grid = np.asarray(grid / peak if peak > 0 else np.zeros_like(grid), np.float32)
    return scaled
