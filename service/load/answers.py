"""Requests, their answers, and what a run of them amounts to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Question:
    """A POST request, sent again and again."""

    url: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What came of one request.

    due, done: when it was to be sent, and when the answer's last byte was there; seconds after the run began.
    status: of the answer; 0 where none came.
    size: of the answer's body, bytes.
    """

    due: float
    done: float
    status: int
    size: int

    @property
    def good(self) -> bool:
        """Whether it is what was asked for."""
        return 200 <= self.status < 300

    @property
    def latency(self) -> float:
        """Seconds from when the request was due, so that a late sender flatters nobody."""
        return self.done - self.due


@dataclass(frozen=True)
class Run:
    """The answers of one run.

    seconds: that rates are counted over: to the last answer, or in an open loop to the schedule's end.
    """

    answers: Sequence[Answer]
    seconds: float

    @property
    def latencies(self) -> list[float]:
        """Of the good answers, seconds."""
        return [answer.latency for answer in self.answers if answer.good]

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return len(self.latencies) / self.seconds

    @property
    def failed(self) -> int:
        """Requests without a good answer."""
        return len(self.answers) - len(self.latencies)

    @property
    def mean_latency(self) -> float:
        """Of the good answers, seconds; NaN without any."""
        return float(np.mean(self.latencies)) if self.latencies else math.nan

    @property
    def mean_size(self) -> float:
        """Of the good answers' bodies, bytes; NaN without any."""
        sizes = [answer.size for answer in self.answers if answer.good]
        return float(np.mean(sizes)) if sizes else math.nan

    def percentile(self, percent: float) -> float:
        """The latency that so many of the good answers did not exceed, seconds; NaN without any."""
        return float(np.percentile(self.latencies, percent)) if self.latencies else math.nan

    def goodput(self, within_s: float) -> float:
        """Good answers a second that came within so many seconds."""
        return sum(latency <= within_s for latency in self.latencies) / self.seconds


def joined(runs: Sequence[Run]) -> Run:
    """Runs of the same kind as one."""
    return Run([answer for run in runs for answer in run.answers], sum(run.seconds for run in runs))
