"""Latency against load, in an open loop, and the knee of that curve."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass

import httpx

from service.load.answers import Question, Run
from service.load.loops import open_loop, strangers

LOADS = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.5)


@dataclass(frozen=True)
class Point:
    """A run at one load.

    load: share of the capacity that was offered.
    offered: requests a second.
    """

    load: float
    offered: float
    run: Run

    def power(self, within_s: float) -> float:
        """Goodput over mean latency (Kleinrock 1979): what is gained for what is waited."""
        return self.run.goodput(within_s) / self.run.mean_latency if self.run.latencies else 0.0


async def curve(
    client: httpx.AsyncClient,
    questions: Iterable[Question],
    capacity: float,
    loads: Sequence[float],
    seconds: float,
    seed: int = 0,
) -> AsyncIterator[Point]:
    """Yields a point a load, each once everything of the one before is answered.

    capacity: requests a second, as a closed loop found it.
    seconds: of requests a load.
    """
    for index, load in enumerate(loads):
        due = strangers(load * capacity, seconds, seed + index)
        yield Point(load, load * capacity, await open_loop(client, questions, due, seconds))


def knee(points: Sequence[Point], within_s: float) -> Point:
    """The point of the most power: beyond it, waiting grows faster than what is served."""
    return max(points, key=lambda point: point.power(within_s))
