"""The stage clock: what it adds up, and when each stage was."""

from contextlib import suppress

from service.stages import Stages


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_spans_follow_one_another_also_where_they_were_told_of_late() -> None:
    clock = Clock()
    stages = Stages(clock)
    clock.now += 1
    with stages.measure("decode"):
        clock.now += 2
    clock.now += 10  # the device thread measures the next three; they are told of together
    stages.add("queue", 5)
    stages.add("model", 3)
    stages.add("explain", 1)
    for _ in range(2):
        clock.now += 1
        with stages.measure("render"):
            clock.now += 2
    assert stages.spans() == [
        ("decode", 101, 103),
        ("queue", 104, 109),
        ("model", 109, 112),
        ("explain", 112, 113),
        ("render", 114, 116),
        ("render", 117, 119),
    ]
    assert stages.seconds == {"decode": 2, "queue": 5, "model": 3, "explain": 1, "render": 4}
    assert stages.total == 19


def test_a_stage_that_fails_counts() -> None:
    clock = Clock()
    stages = Stages(clock)
    with suppress(ValueError), stages.measure("decode"):
        clock.now += 2
        raise ValueError
    assert stages.spans() == [("decode", 100, 102)]


def test_nothing_measured() -> None:
    assert Stages().spans() == []
