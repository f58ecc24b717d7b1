"""The files that are sent: real photographs where test data is there, else drawn ones."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from service.load.photographs import drawn, resized

LARGE = 1_000_000
"""Pixels from which pictures are drawn: blown-up photographs are too smooth to cost what large ones cost."""


@lru_cache
def photographs(count: int, width: int = 640, height: int = 480) -> list[bytes]:
    """JPEG files of one size."""
    paths = _paths()
    if not paths or width * height > LARGE:
        return drawn(count, width, height)
    return resized(paths[:: max(1, len(paths) // count)][:count], width, height)


def described() -> str:
    """What they are."""
    return "photographs of the test data" if _paths() else "drawn photographs (1/f noise with edges)"


def _paths() -> list[Path]:
    folder = os.environ.get("VIT_ATTENTION_TEST_DATA")
    found = (Path(folder) / "photos").rglob("*") if folder else ()
    return sorted(path for path in found if path.suffix.lower() in (".jpg", ".jpeg"))
