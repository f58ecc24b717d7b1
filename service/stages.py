"""One stage clock a request: it feeds Server-Timing, the logs, the metrics and the traces."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from service.types import Clock


class Stages:
    """Seconds a request has spent in each named stage; stages that repeat add up."""

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self.clock = clock
        self.started = clock()
        self.seconds: dict[str, float] = {}
        self._added: list[tuple[str, float, float]] = []

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Adds the time spent inside the with block to `stage`."""
        start = self.clock()
        try:
            yield
        finally:
            self.add(stage, self.clock() - start)

    def add(self, stage: str, seconds: float) -> None:
        """Adds seconds measured elsewhere, on the device thread for one."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        self._added.append((stage, self.clock(), seconds))

    def spans(self) -> list[tuple[str, float, float]]:
        """Each stage as it was added, with when it began and ended on this clock.

        Stages follow one another: one that was told of only when others were, ended when they began.
        """
        spans: list[tuple[str, float, float]] = []
        next_began = self.clock()
        for stage, told, seconds in reversed(self._added):
            end = min(told, next_began)
            next_began = end - seconds
            spans.insert(0, (stage, next_began, end))
        return spans

    @property
    def total(self) -> float:
        """Seconds since this clock was made."""
        return self.clock() - self.started

    def server_timing(self) -> str:
        """The Server-Timing header's value, milliseconds: `decode;dur=3.1, ..., total;dur=80.2`."""
        durations = {**self.seconds, "total": self.total}
        return ", ".join(f"{stage};dur={seconds * 1000:.1f}" for stage, seconds in durations.items())
