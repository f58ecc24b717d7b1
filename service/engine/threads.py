"""One thread budget for the model and the pool together, and their place behind the event loop."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

BEHIND = 10
"""How much nicer threads that compute are than the event loop."""

CGROUP_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def cpu_budget(cpu_max: Path = CGROUP_CPU_MAX) -> int:
    """CPUs by affinity, or fewer where the cgroup's quota (cgroup v2, "quota period") allows fewer."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = cpu_max.read_text().split()
        return min(allowed, max(1, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup v2, or the quota is "max"
        return allowed


def step_back() -> None:
    """Lets the event loop go before the calling thread and those that it starts.

    A refusal or a health check takes a millisecond of CPU; among threads that compute for ever its turn would
    come late. Linux gives each thread a niceness of its own; elsewhere it is the process's, and left alone.
    """
    if sys.platform == "linux":
        os.nice(BEHIND)
