"""Damaged images by the thousand, through one server process that stays as it was."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.load.photographs import drawn, resized
from tests.api.watched_server import ROOT, ROUTES, WatchedServer, request, saved
from tests.mutations import Mutator

STEP = 64
MUTATED = 20_000
WAYS = {
    "JPEG": [{}, {"progressive": True, "quality": 60}, {"subsampling": 0, "restart_marker_blocks": 2}],
    "PNG": [{}, {"compress_level": 0}],
    "WEBP": [{}, {"lossless": True}],
    "GIF": [{}],
    "BMP": [{}],
    "TIFF": [{}, {"compression": "tiff_deflate"}, {"compression": "tiff_lzw"}, {"compression": "jpeg"}],
    "AVIF": [{}],
}
"""How the files that are damaged are written, by format."""


pytestmark = pytest.mark.usefixtures("unharmed")


def photograph(width: int, height: int) -> bytes:
    """A photograph where there is test data, else a drawn picture."""
    if folder := os.environ.get("VIT_ATTENTION_TEST_DATA"):
        paths = sorted(Path(folder).glob("photos/**/*.jpg"))[:1]
        if paths:
            return resized(paths, width, height)[0]
    return drawn(1, width, height)[0]


def as_png(jpeg: bytes) -> bytes:
    with Image.open(io.BytesIO(jpeg)) as image:
        return saved(image, "PNG")


def seeds() -> list[bytes]:
    """Small good files of every accepted format and of many kinds."""
    with Image.open(ROOT / "samples" / "striped.jpg") as image:
        colour = image.resize((40, 30))
    files = [saved(colour, kind, **options) for kind, ways in WAYS.items() for options in ways]
    clear = colour.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(colour.size))
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = {"save_all": True, "append_images": [colour.rotate(90), colour.rotate(180)]}
    deep = Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50)
    floats = Image.fromarray(np.linspace(-1, 1, 1200, dtype=np.float32).reshape(30, 40))
    return [
        *files,
        saved(colour.convert("L"), "JPEG"),
        saved(colour.convert("CMYK"), "JPEG"),
        saved(colour, "JPEG", exif=exif),
        *[saved(clear, kind) for kind in ("PNG", "WEBP", "TIFF", "AVIF")],
        *[saved(colour.convert("P"), kind) for kind in ("PNG", "BMP", "TIFF")],
        *[saved(colour.convert("1"), kind) for kind in ("PNG", "BMP")],
        saved(colour.convert("1"), "TIFF", compression="group4"),
        *[saved(colour, kind, **frames) for kind in ("PNG", "GIF", "WEBP", "TIFF", "AVIF")],
        saved(deep, "PNG"),
        saved(deep, "TIFF"),
        saved(floats, "TIFF"),
    ]


@pytest.mark.parametrize("route", ROUTES[:2])
@pytest.mark.parametrize(("kind", "size"), [("JPEG", (340, 250)), ("PNG", (128, 96))])
def test_every_truncation(server: WatchedServer, kind: str, size: tuple[int, int], route: str) -> None:
    """Only a file that lacks no more than its end marker is a picture."""
    whole = photograph(*size)
    if kind == "PNG":
        whole = as_png(whole)
    cuts = range(0, len(whole), STEP)
    assert len(cuts) > 300
    assert server.post(whole, route).status == 200
    seen = server.post_all(request(whole[:cut], route) for cut in cuts)
    assert set(seen) <= {200, 400}
    assert seen[200] <= 1
    assert seen.total() == len(cuts)


def test_mutated_images(server: WatchedServer) -> None:
    mutator = Mutator(seeds(), seed=5)
    seen = server.post_all(request(mutator.mutated()) for _ in range(MUTATED))
    assert seen.total() == MUTATED
    assert min(seen[status] for status in (200, 400, 413)) > MUTATED / 1000, seen
    assert set(seen) <= {200, 400, 413, 415, 503}
    assert seen[503] < MUTATED / 100, seen
