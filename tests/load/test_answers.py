import math

import pytest

from service.load.answers import Answer, Run, joined


def answers(*latencies: float, status: int = 200) -> list[Answer]:
    return [Answer(due=i, done=i + latency, status=status, size=100) for i, latency in enumerate(latencies)]


RUN = Run(
    [*answers(*(0.25 * k for k in range(1, 12))), *answers(9.0, status=503), *answers(7.0, status=0)], 5.5
)


def test_only_good_answers_count() -> None:
    assert RUN.rate == 11 / 5.5
    assert RUN.failed == 2
    assert RUN.mean_latency == pytest.approx(1.5)
    assert RUN.mean_size == 100


def test_percentiles_interpolate() -> None:
    assert RUN.percentile(0) == pytest.approx(0.25)
    assert RUN.percentile(50) == pytest.approx(1.5)
    assert RUN.percentile(95) == pytest.approx(2.625)
    assert RUN.percentile(100) == pytest.approx(2.75)


def test_goodput_is_what_came_in_time() -> None:
    assert RUN.goodput(1.0) == 4 / 5.5
    assert RUN.goodput(0.1) == 0


def test_latency_counts_from_when_the_request_was_due() -> None:
    assert Answer(due=3.0, done=5.5, status=200, size=0).latency == 2.5


def test_a_run_without_good_answers_has_no_latency() -> None:
    run = Run(answers(1.0, 2.0, status=500), 3.0)
    assert (run.rate, run.failed) == (0, 2)
    assert math.isnan(run.percentile(50))
    assert math.isnan(run.mean_latency)
    assert math.isnan(run.mean_size)


def test_runs_join() -> None:
    both = joined([Run(answers(1.0), 2.0), Run(answers(3.0, 5.0), 4.0)])
    assert (both.rate, both.percentile(50)) == (0.5, 3.0)
