"""Times of things that are measured in turns, and what is said of them."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

Samples = dict[str, list[float]]
"""Seconds (or another number) by case, in the order of the rounds."""

PAUSE_S = 0.02
"""Between two cases: the threads of the one before stop spinning."""


def interleaved(cases: Mapping[str, Callable[[], object]], rounds: int) -> Samples:
    """Runs each case once unmeasured, then all of them once a round, each round in another order."""
    samples: Samples = {name: [] for name in cases}
    for call in cases.values():
        call()
    order = list(cases)
    shuffle = random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            time.sleep(PAUSE_S)
            began = time.perf_counter()
            cases[name]()
            samples[name].append(time.perf_counter() - began)
    return samples


def median(values: Sequence[float]) -> float:
    """NaN without any."""
    return float(np.median(values)) if len(values) else math.nan


def ratio(of: Sequence[float], to: Sequence[float]) -> float:
    """The median over rounds of one over the other: what slows the machine for a while slows both."""
    pairs = [a / b for a, b in zip(of, to, strict=False)]
    return median(pairs)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """`median (lower quartile-upper quartile)`."""
    if not len(values):
        return "-"
    low, middle, high = (float(it) for it in np.percentile(values, [25, 50, 75]))
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"
