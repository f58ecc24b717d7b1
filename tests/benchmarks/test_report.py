import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks import forward
from benchmarks.forward import Row
from benchmarks.report import Part, Target, write
from benchmarks.samples import interleaved, ratio, spread


@pytest.mark.parametrize(
    ("target", "verdict"),
    [
        (Target("ratio", 1.1, 1.1), "met"),
        (Target("ratio", 1.1, 1.11), "**missed**"),
        (Target("rate", 4, 4.2, at_least=True), "met"),
        (Target("rate", 4, 3.9, at_least=True), "**missed**"),
        (Target("rate", 4, math.nan, at_least=True), "not measured"),
    ],
)
def test_a_target_is_met_or_missed(target: Target, verdict: str) -> None:
    assert target.verdict == verdict


def test_the_report_ends_with_every_target(tmp_path: Path) -> None:
    parts = [
        Part("1. This", "| a |", [Target("this", 2, 1.5)]),
        Part("2. That", "text", [Target("that", 3, 2, "ms", at_least=True)]),
    ]
    text = write(tmp_path / "RESULTS.md", parts, "Settings.")
    assert (tmp_path / "RESULTS.md").read_text() == text
    assert "## 1. This\n\n| a |" in text
    assert text.splitlines()[-2:] == [
        "| this | <= 2 x | 1.5 x | met |",
        "| that | >= 3 ms | 2 ms | **missed** |",
    ]


def test_every_round_runs_every_case_once_after_a_warm_up() -> None:
    calls: list[str] = []
    samples = interleaved({name: lambda name=name: calls.append(name) for name in "abc"}, 5)
    assert calls[:3] == ["a", "b", "c"]
    assert all(set(calls[i : i + 3]) == set("abc") for i in range(0, 18, 3))
    assert {name: len(seconds) for name, seconds in samples.items()} == {"a": 5, "b": 5, "c": 5}


def test_ratios_are_paired_by_round() -> None:
    assert ratio([2.0, 20.0, 6.0], [1.0, 10.0, 2.0]) == 2.0
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == "3.0 (2.0-4.0)"
    assert spread([]) == "-"


def test_a_peer_that_is_missing_says_why() -> None:
    def make(pixels: np.ndarray) -> forward.Forward:
        raise ModuleNotFoundError("No module named 'openvino'")

    there, gone = Row("fp32", "there", lambda pixels: len), Row("fp32", "gone", make)
    forward.measure([there, gone], 4, 2)
    assert len(there.seconds[4]) == 2
    assert gone.missing == "ModuleNotFoundError: No module named 'openvino'"
    assert not gone.seconds


def test_the_slow_batches_have_fewer_rounds() -> None:
    assert [forward.rounds(5, batch) for batch in (1, 4, 8, 16)] == [20, 10, 5, 3]
    assert [forward.rounds(1, batch) for batch in (1, 4, 8, 16)] == [4, 2, 1, 1]
