import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.engine.threads import BEHIND, cpu_budget, step_back

ALLOWED = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("cpu_max", "expected"),
    [
        ("max 100000", ALLOWED),
        ("100000 100000", 1),
        ("50000 100000", 1),
        ("150000 100000", min(ALLOWED, 2)),
        ("6400000 100000", ALLOWED),
        ("", ALLOWED),
    ],
)
def test_the_budget_is_the_quota_or_the_affinity(tmp_path: Path, cpu_max: str, expected: int) -> None:
    (tmp_path / "cpu.max").write_text(cpu_max)
    assert cpu_budget(tmp_path / "cpu.max") == expected


def test_without_a_cgroup_the_affinity_counts(tmp_path: Path) -> None:
    assert cpu_budget(tmp_path / "none") == ALLOWED


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own here")
def test_a_thread_steps_behind_the_others_and_takes_its_own_along() -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, 0)

    def stepped_back() -> tuple[int, int]:
        step_back()
        with ThreadPoolExecutor(1) as started:
            return niceness(), started.submit(niceness).result()

    before = niceness()
    with ThreadPoolExecutor(1) as other:
        assert other.submit(stepped_back).result() == (before + BEHIND, before + BEHIND)
    assert niceness() == before
