"""One stage clock a request: it feeds Server-Timing, the logs and the metrics."""

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

    @property
    def total(self) -> float:
        """Seconds since this clock was made."""
        return self.clock() - self.started

    def server_timing(self) -> str:
        """The Server-Timing header's value, milliseconds: `decode;dur=3.1, ..., total;dur=80.2`."""
        durations = {**self.seconds, "total": self.total}
        return ", ".join(f"{stage};dur={seconds * 1000:.1f}" for stage, seconds in durations.items())
