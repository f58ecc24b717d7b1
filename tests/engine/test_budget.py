import threading

import pytest

from service.engine.budget import Budget
from service.errors import QueueFull


@pytest.fixture
def budget() -> Budget:
    return Budget(10, "bytes", lambda: 2.5)


def test_what_is_held_is_given_back_at_the_end(budget: Budget) -> None:
    with budget.hold() as share, budget.hold() as other:
        share.take(3)
        share.take(4)
        other.take(3)
        assert budget.held == 10
        share.give_back()
        assert budget.held == 3
    assert budget.held == 0


def test_what_does_not_fit_is_refused_with_a_time_to_come_back(budget: Budget) -> None:
    with budget.hold() as share, budget.hold() as other:
        share.take(8)
        with pytest.raises(QueueFull, match=r"hold 8 bytes of 10 .* 3 more") as refusal:
            other.take(3)
        assert refusal.value.retry_after == 2.5
        with pytest.raises(QueueFull):
            budget.check(3)
        other.take(2)
    assert budget.held == 0


def test_who_is_alone_may_take_more_than_there_is(budget: Budget) -> None:
    with budget.hold() as share, budget.hold() as other:
        share.take(6)
        share.take(6)
        with pytest.raises(QueueFull):
            other.take(1)
    assert budget.held == 0


def test_a_share_that_was_given_back_takes_no_more(budget: Budget) -> None:
    with budget.hold() as share:
        pass
    with pytest.raises(QueueFull, match="Nobody waits"):
        share.take(1)
    assert budget.held == 0


def test_threads_never_hold_more_than_the_limit_and_leave_nothing(budget: Budget) -> None:
    most, refused = [], []

    def take() -> None:
        for _ in range(200):
            with budget.hold() as share:
                try:
                    share.take(4)
                except QueueFull:
                    refused.append(1)
                most.append(budget.held)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert max(most) <= 10
    assert budget.held == 0
