"""JPEG files that cost what photographs cost: every frequency, falling as 1/f, and some edges."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw

QUALITY = 90
FALL = 1.25
"""A little steeper than 1/f: so a file has the bytes that a photograph's has."""


def drawn(count: int, width: int, height: int, seed: int = 0) -> list[bytes]:
    """So many drawn pictures of one size, never twice the same."""
    rng = np.random.default_rng(seed)
    return [_jpeg(_scene(width, height, rng)) for _ in range(count)]


def resized(paths: list[Path], width: int, height: int) -> list[bytes]:
    """Photographs at one size."""
    files = []
    for path in paths:
        with Image.open(path) as image:
            files.append(_jpeg(image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)))
    return files


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _scene(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """1/f noise, bright and less of it in colour, with a few blobs that have edges."""
    light, red, blue = (_pink(width, height, rng) for _ in range(3))
    channels = [light + 0.3 * red, light - 0.15 * (red + blue), light + 0.3 * blue]
    pixels = np.clip(128 + 45 * np.stack(channels, axis=-1), 0, 255).astype(np.uint8)
    image = Image.fromarray(pixels)
    overlay = Image.fromarray(np.roll(pixels, (height // 3, width // 3), (0, 1))[:, ::-1].copy())
    mask = Image.new("L", image.size)
    draw = ImageDraw.Draw(mask)
    for _ in range(12):
        x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
        radius = int(rng.integers(8, max(9, min(width, height) // 6)))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=int(rng.integers(128, 256)))
    image.paste(overlay, mask=mask)
    return image


def _pink(width: int, height: int, rng: np.random.Generator) -> Float[np.ndarray, "height width"]:
    """Noise whose amplitude falls as 1/f, as in photographs; mean 0, standard deviation 1."""
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = np.inf
    phases = rng.normal(size=(2, *frequency.shape))
    noise = np.fft.irfft2((phases[0] + 1j * phases[1]) / frequency**FALL, s=(height, width))
    scaled: Float[np.ndarray, "height width"] = noise / noise.std()
    return scaled
