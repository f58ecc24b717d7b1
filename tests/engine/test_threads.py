import os
from pathlib import Path

import pytest

from service.engine.threads import cpu_budget

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
