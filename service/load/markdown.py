"""Markdown tables: the first column to the left, numbers to the right."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A whole table."""
    return "\n".join([head(columns), *(row(cells) for cells in rows)])


def head(columns: Sequence[str]) -> str:
    """The two lines above the rows."""
    return f"{row(columns)}\n{row([':---', *['---:'] * (len(columns) - 1)])}"


def row(cells: Sequence[str]) -> str:
    """One line."""
    return f"| {' | '.join(cells)} |"


def milliseconds(seconds: float) -> str:
    """Three figures; a dash where there is no number."""
    if math.isnan(seconds):
        return "-"
    return f"{seconds * 1000:.3g}" if seconds < 1 else f"{seconds * 1000:.0f}"
