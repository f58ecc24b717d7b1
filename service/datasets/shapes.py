"""Pictures with known classes and exact object masks, drawn on the fly.

One object, or two of different classes, lies on cluttered ground. Ten classes: six patterns in a dark
and a light colour (striped, dotted, checkered, ringed, bricked, zigzag) and four colours in tiles of
many shades (scarlet, golden, emerald, cobalt). Everything else is chance and says nothing about the
class: silhouette, size, angle, place, the pattern's colours, period and tilt. The ground is muted and
out of focus: soft gradients under plain shapes, which have the same silhouettes as the objects.

A picture depends on (seed, index) and the arguments alone, whatever process draws it.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from service.types import RGB, Size

Plane = Float32[np.ndarray, "height width"]
Coloured = Float32[np.ndarray, "height width 3"]
Points = Float[np.ndarray, "points 2"]
Row = Float32[np.ndarray, "1 width"]
Column = Float32[np.ndarray, "height 1"]
Colour = tuple[int, int, int]
Coat = Callable[[np.random.Generator, Row, Column, int], Coloured]

BLUR = 0.036  # radius of the ground's blur, of the shorter side: 8 pixels of 224
SUBPIXEL_BITS = 4  # cv2 takes polygons in 1/16 pixel
OUTLINE = np.linspace(0, 2 * np.pi, 72, endpoint=False)


@dataclass(frozen=True)
class Picture:
    """A drawn picture and what is in it.

    image: the picture, RGB.
    masks: where each object is, exactly; no two overlap.
    classes: each object's class, an index into CLASSES; the largest object comes first.
    """

    image: RGB
    masks: Bool[np.ndarray, "objects height width"]
    classes: tuple[int, ...]

    @property
    def label(self) -> int:
        """The class of the picture: its largest object's."""
        return self.classes[0]


def picture(seed: int, index: int, size: Size = (224, 224), objects: int = 1, zoom: int = 1) -> Picture:
    """Picture number `index` of the set that `seed` names: always the same one."""
    return draw(np.random.default_rng([seed, index]), size, objects, zoom)


def draw(rng: np.random.Generator, size: Size = (224, 224), objects: int = 1, zoom: int = 1) -> Picture:
    """A random picture of `size` (height, width) with 0, 1 or 2 objects.

    Ground and grain are drawn first, so the same generator state gives the same ground for any number
    of objects. zoom: how near the camera is; 2 draws at 112 pixels the detail that 1 draws at 224, as if
    cut out around the object.
    """
    if objects not in (0, 1, 2):
        raise ValueError(f"a picture holds 0, 1 or 2 objects, not {objects}")
    image = draw_ground(rng, size, zoom)
    grain = draw_grain(rng, size)
    masks = np.zeros((objects, *size), bool)
    classes = rng.choice(len(CLASSES), objects, replace=False)
    spots = place(rng, size, objects, zoom)
    for mask, kind, (centre, radius) in zip(masks, classes, spots, strict=True):
        mask |= paint(image, rng, PAINTS[kind], centre, radius, zoom * min(size))
    cv2.subtract(cv2.add(image, grain), np.full_like(image, 8), dst=image)
    return Picture(image, masks, tuple(int(kind) for kind in classes))


# ---- the ground


def draw_ground(rng: np.random.Generator, size: Size, zoom: int = 1) -> RGB:
    """Soft muted light and dark, and plain muted shapes of every size on it, out of focus."""
    height, width = size
    field = np.array([muted(rng) for _ in range(12)], np.uint8).reshape(3, 4, 3)
    image: RGB = cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(rng.integers(8, 16)):
        radius = zoom * min(size) * rng.uniform(0.03, 0.2)
        centre = rng.uniform(0, width), rng.uniform(0, height)
        fill(image, silhouette(rng, centre, radius), muted(rng))
    return cv2.stackBlur(image, (2 * round(BLUR * zoom * min(size)) + 1,) * 2, dst=image)


def draw_grain(rng: np.random.Generator, size: Size) -> UInt8[np.ndarray, "height width 3"]:
    """Grain of a camera: 0..15 in every channel, to be added less 8."""
    count = size[0] * size[1] * 3
    return (np.frombuffer(rng.bytes(count), np.uint8) >> 4).reshape(*size, 3)


def muted(rng: np.random.Generator) -> Colour:
    """A greyish colour: no object is painted plain in one."""
    return hsv(rng.uniform(0, 1), rng.uniform(0.03, 0.28), rng.uniform(0.25, 0.85))


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """RGB, 0..255, of a hue (0..1 around the circle), saturation and value."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


# ---- silhouettes: points around the origin, none further from it than 1


def _radial(radii: Float[np.ndarray, " points"]) -> Points:
    """The outline with these radii at OUTLINE's angles, scaled to reach 1."""
    return _reaching_1(np.stack([np.cos(OUTLINE), np.sin(OUTLINE)], -1) * radii[:, None])


def _reaching_1(points: Points) -> Points:
    scaled: Points = points / np.linalg.norm(points, axis=1).max()
    return scaled


def _polygon(corners: int) -> Points:
    angles = 2 * np.pi * np.arange(corners) / corners
    return np.stack([np.cos(angles), np.sin(angles)], -1)


def _star() -> Points:
    points = _polygon(10)
    points[1::2] *= 0.58
    return points


def _cross() -> Points:
    arm = 0.42
    quarter = np.array([[1.0, -arm], [1.0, arm], [arm, arm]])
    turns = [quarter @ np.array([[c, s], [-s, c]]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
    points = np.concatenate(turns)
    return _reaching_1(points)


def _heart() -> Points:
    x = 16 * np.sin(OUTLINE) ** 3
    y = 2 - 13 * np.cos(OUTLINE) + 5 * np.cos(2 * OUTLINE) + 2 * np.cos(3 * OUTLINE) + np.cos(4 * OUTLINE)
    points = np.stack([x, y], -1)
    return _reaching_1(points)


SILHOUETTES: dict[str, Points] = {
    "disc": _radial(np.ones_like(OUTLINE)),
    "ellipse": _radial(1 / np.hypot(np.cos(OUTLINE), np.sin(OUTLINE) / 0.68)),
    "square": _polygon(4),
    "hexagon": _polygon(6),
    "triangle": _polygon(3),
    "star": _star(),
    "cross": _cross(),
    "heart": _heart(),
    "flower": _radial(1 + 0.16 * np.cos(5 * OUTLINE)),
    "pebble": _radial(1 + 0.14 * np.cos(2 * OUTLINE + 1) + 0.1 * np.cos(3 * OUTLINE)),
}
_SILHOUETTES = tuple(SILHOUETTES.values())


def silhouette(rng: np.random.Generator, centre: tuple[float, float], radius: float) -> Points:
    """A random silhouette at a random angle, in pixels (x, y)."""
    angle = rng.uniform(0, 2 * math.pi)
    c, s = math.cos(angle), math.sin(angle)
    points = _SILHOUETTES[rng.integers(len(_SILHOUETTES))]
    turned: Points = radius * points @ np.array([[c, s], [-s, c]]) + centre
    return turned


def fill(image: UInt8[np.ndarray, "height width ..."], points: Points, colour: Colour | int) -> None:
    """Fill a silhouette with one colour, its edge antialiased."""
    fixed = np.rint(points * (1 << SUBPIXEL_BITS)).astype(np.int32)
    cv2.fillPoly(image, [fixed], colour, lineType=cv2.LINE_AA, shift=SUBPIXEL_BITS)


# ---- objects


def place(
    rng: np.random.Generator, size: Size, objects: int, zoom: int = 1
) -> list[tuple[tuple[float, float], float]]:
    """((x, y), radius) of each object in pixels, largest first; two never touch."""
    height, width = size
    smallest, largest = (0.19, 0.36) if objects == 1 else (0.16, 0.24)
    radii = sorted((zoom * min(size) * rng.uniform(smallest, largest) for _ in range(objects)), reverse=True)
    margins = [min(radius, 0.5 * min(size) - 0.2 * min(size) * (zoom > 1)) for radius in radii]
    for _ in range(50):
        centres = [(rng.uniform(m, width - m), rng.uniform(m, height - m)) for m in margins]
        if objects < 2 or math.dist(*centres) > sum(radii) + 1:
            return list(zip(centres, radii, strict=True))
    first, second = margins
    return [((first, first), radii[0]), ((width - second, height - second), radii[1])]


def paint(
    image: RGB,
    rng: np.random.Generator,
    coat: Coat,
    centre: tuple[float, float],
    radius: float,
    scale: int,
) -> Bool[np.ndarray, "height width"]:
    """Paint an object into the picture, in place, and hand back its mask.

    coat: its colours, from coordinates in pixels around its centre.
    scale: the shorter side of the whole scene, which patterns are measured by.
    """
    height, width = image.shape[:2]
    alpha = np.zeros((height, width), np.uint8)
    fill(alpha, silhouette(rng, centre, radius), 255)
    left, top = (max(0, math.floor(at - radius) - 1) for at in centre)
    right, bottom = (math.ceil(at + radius) + 2 for at in centre)
    window = image[top:bottom, left:right]
    y, x = np.ogrid[top : top + window.shape[0], left : left + window.shape[1]]
    x, y = (x - centre[0]).astype(np.float32), (y - centre[1]).astype(np.float32)
    colours = coat(rng, x, y, scale) * shading(rng, x / radius, y / radius)[..., None]
    opacity = alpha[top:bottom, left:right, None] * np.float32(1 / 255)
    mixed = window + opacity * (np.clip(colours, 8, 247) - window)
    window[:] = (mixed + 0.5).astype(np.uint8)
    mask: Bool[np.ndarray, "height width"] = alpha > 127
    return mask


def shading(rng: np.random.Generator, x: Row, y: Column) -> Plane:
    """Light from one side, 0.8 to 1.1 over the object."""
    angle = rng.uniform(0, 2 * math.pi)
    light: Plane = 0.95 + 0.15 * np.clip(math.cos(angle) * x + math.sin(angle) * y, -1, 1)
    return light


# ---- patterns: how far inside the figure a point is, in periods (negative: outside), u and v in periods


def _fold(t: Plane) -> Plane:
    """Distance to the nearest whole number."""
    distance: Plane = np.abs(t - np.rint(t))
    return distance


def _striped(u: Plane, v: Plane) -> Plane:
    return 0.25 - _fold(u)


def _dotted(u: Plane, v: Plane) -> Plane:
    distance: Plane = 0.33 - np.hypot(_fold(u), _fold(v))
    return distance


def _checkered(u: Plane, v: Plane) -> Plane:
    a, b = 0.25 - _fold(u), 0.25 - _fold(v)
    distance: Plane = np.sign(a * b) * np.minimum(np.abs(a), np.abs(b))
    return distance


def _ringed(u: Plane, v: Plane) -> Plane:
    distance: Plane = 0.09 - np.abs(np.hypot(_fold(u), _fold(v)) - 0.36)
    return distance


def _bricked(u: Plane, v: Plane) -> Plane:
    rows = np.floor(v)
    distance: Plane = np.maximum(0.1 - _fold(v), 0.1 - 2 * _fold(u / 2 + rows / 2))
    return distance


def _zigzag(u: Plane, v: Plane) -> Plane:
    distance: Plane = 0.707 * (0.25 - _fold(v + 2 * _fold(u / 2)))
    return distance


# name -> (pattern, its period against the common one)
PATTERNS: dict[str, tuple[Callable[[Plane, Plane], Plane], float]] = {
    "striped": (_striped, 1.0),
    "dotted": (_dotted, 1.0),
    "checkered": (_checkered, 1.4),
    "ringed": (_ringed, 1.5),
    "bricked": (_bricked, 0.9),
    "zigzag": (_zigzag, 1.1),
}
PERIODS = (0.046, 0.08)  # of the shorter side: 10 to 18 pixels of 224
TILES = 64  # along a side: more than an object has, so an index from the end is as good as one from 0
TILT = math.radians(25)

# name -> (middle hue, hues either side), degrees
COLOURS = {"scarlet": (0, 10), "golden": (48, 6), "emerald": (145, 14), "cobalt": (224, 12)}


def _patterned(name: str) -> Coat:
    """A coat with a pattern, in a dark and a light colour; either may be the figure."""
    pattern, relative = PATTERNS[name]

    def coat(rng: np.random.Generator, x: Row, y: Column, scale: int) -> Coloured:
        period = scale * relative * rng.uniform(*PERIODS)
        tilt = rng.uniform(-TILT, TILT)
        c, s = math.cos(tilt) / period, math.sin(tilt) / period
        u, v = c * x + s * y + np.float32(rng.uniform()), c * y - s * x + np.float32(rng.uniform())
        figure = np.clip(pattern(u, v) * np.float32(period) + 0.5, 0, 1)[..., None]
        pair = [
            hsv(rng.uniform(), rng.uniform(0.3, 0.95), rng.uniform(0.1, 0.32)),
            hsv(rng.uniform(), rng.uniform(0.0, 0.45), rng.uniform(0.88, 1.0)),
        ]
        one, other = (np.array(colour, np.float32) for colour in rng.permutation(pair))
        colours: Coloured = one + figure * (other - one)
        return colours

    return coat


def _tiled(name: str) -> Coat:
    """A coat of tiles in shades of one strong colour."""
    middle, spread = COLOURS[name]

    def coat(rng: np.random.Generator, x: Row, y: Column, scale: int) -> Coloured:
        hue = (middle + rng.uniform(-spread, spread)) / 360
        colour = hsv(hue, rng.uniform(0.85, 1.0), rng.uniform(0.8, 1.0))
        shades = rng.uniform(0.55, 1.0, (TILES, TILES, 1)).astype(np.float32) * np.array(colour, np.float32)
        side, tilt = scale * rng.uniform(*PERIODS), rng.uniform(-TILT, TILT)
        c, s = math.cos(tilt) / side, math.sin(tilt) / side
        column, row = np.floor(c * x + s * y).astype(np.int32), np.floor(c * y - s * x).astype(np.int32)
        tiles: Coloured = shades[row, column]
        return tiles

    return coat


CLASSES = (*PATTERNS, *COLOURS)
PAINTS = (*map(_patterned, PATTERNS), *map(_tiled, COLOURS))
