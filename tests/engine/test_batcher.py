"""The queue's policy on a clock that the test moves."""

import threading
from concurrent.futures import Future

import numpy as np
import pytest

from service.engine.batcher import Batcher
from service.errors import DeadlineExceeded, NotReady
from service.explain.blocks import BlockMaps
from service.explain.rollout import Rollout
from service.types import Explainer, Job


class FakeClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def batcher(clock: FakeClock) -> Batcher:
    return Batcher(max_batch=3, max_wait_s=5.0, clock=clock)


def job(
    clock: FakeClock,
    model: str = "a",
    size: tuple[int, int] = (7, 11),
    explainer: Explainer | None = None,
    lasts_s: float = 60.0,
) -> Job:
    return Job(model, np.zeros((3, *size), np.float32), explainer, clock.now, clock.now + lasts_s, Future())


def test_it_takes_what_waits_oldest_first_up_to_the_largest_batch(batcher: Batcher, clock: FakeClock) -> None:
    jobs = [job(clock) for _ in range(5)]
    for each in jobs:
        batcher.submit(each)
    assert batcher.next_batch() == jobs[:3]
    assert batcher.next_batch() == jobs[3:]
    assert all(each.future.running() for each in jobs)


def test_jobs_share_a_batch_only_with_the_same_model_size_and_capture(
    batcher: Batcher, clock: FakeClock
) -> None:
    plain, other_model, other_size = job(clock), job(clock, "b"), job(clock, size=(11, 7))
    rollout, pruned = job(clock, explainer=Rollout()), job(clock, explainer=Rollout("mean", 0.5))
    blocks, fused_max = job(clock, explainer=BlockMaps()), job(clock, explainer=Rollout("max"))
    plain_again = job(clock)
    for each in (plain, other_model, other_size, rollout, blocks, pruned, fused_max, plain_again):
        batcher.submit(each)
    batches = [batcher.next_batch() for _ in range(6)]
    assert batches == [
        [plain, plain_again],
        [other_model],
        [other_size],
        [rollout, pruned],  # one capture, two explanations
        [blocks],
        [fused_max],
    ]


def test_a_lone_job_does_not_wait(batcher: Batcher, clock: FakeClock) -> None:
    alone = job(clock)
    batcher.submit(alone)
    assert batcher._wait_s() == 0
    assert batcher.next_batch() == [alone]


def test_a_small_batch_waits_only_while_others_are_on_their_way(batcher: Batcher, clock: FakeClock) -> None:
    with batcher.arriving():
        batcher.submit(job(clock))
        assert batcher._wait_s() == 5.0
        clock.now += 4.0
        batcher.submit(job(clock))
        assert batcher._wait_s() == 1.0  # the oldest job's wait, not the newest's
        clock.now += 1.0
        assert batcher._wait_s() == 0
        batcher.next_batch()
        for _ in range(3):
            batcher.submit(job(clock))
        assert batcher._wait_s() == 0  # full
    assert batcher._arriving == 0


def test_the_wait_ends_when_the_last_arrival_gives_up(batcher: Batcher, clock: FakeClock) -> None:
    waiting = job(clock)
    batches = []
    with batcher.arriving():
        batcher.submit(waiting)
        device = threading.Thread(target=lambda: batches.append(batcher.next_batch()))
        device.start()
        device.join(0.05)
        assert device.is_alive()
    device.join(10)
    assert batches == [[waiting]]


def test_a_cancelled_job_is_dropped_before_it_is_computed(batcher: Batcher, clock: FakeClock) -> None:
    gone, stays = job(clock), job(clock)
    batcher.submit(gone)
    batcher.submit(stays)
    assert gone.future.cancel()
    assert batcher.next_batch() == [stays]
    assert not stays.future.cancel()


def test_an_expired_job_ends_in_an_error_and_frees_its_place(batcher: Batcher, clock: FakeClock) -> None:
    late, stays = job(clock, lasts_s=1.0), job(clock)
    batcher.submit(late)
    batcher.submit(stays)
    clock.now += 1.0
    assert batcher.next_batch() == [stays]
    with pytest.raises(DeadlineExceeded, match=r"after 1.0 s.*X-Request-Timeout"):
        late.future.result()


def test_closing_hands_out_what_waits_and_takes_nothing_new(batcher: Batcher, clock: FakeClock) -> None:
    waiting, gone = job(clock), job(clock, "b")
    batcher.submit(waiting)
    batcher.submit(gone)
    gone.future.cancel()
    batcher.close()
    with pytest.raises(NotReady, match="shutting down"):
        batcher.submit(job(clock))
    assert batcher.next_batch() == [waiting]
    assert batcher.next_batch() is None


def test_closing_wakes_a_device_that_waits(batcher: Batcher) -> None:
    batches: list[list[Job] | None] = []
    device = threading.Thread(target=lambda: batches.append(batcher.next_batch()))
    device.start()
    batcher.close()
    device.join(10)
    assert batches == [None]


def test_a_cancelled_job_leaves_the_queue_at_once(batcher: Batcher, clock: FakeClock) -> None:
    gone = [job(clock) for _ in range(500)]
    for each in gone:
        batcher.submit(each)
    assert len(batcher) == 500
    for each in gone:
        assert each.future.cancel()
    assert len(batcher) == 0
    stays = job(clock)
    batcher.submit(stays)
    assert batcher.next_batch() == [stays]


def test_a_job_that_was_cancelled_before_it_is_queued_is_forgotten(
    batcher: Batcher, clock: FakeClock
) -> None:
    gone = job(clock)
    gone.future.cancel()
    batcher.submit(gone)
    assert len(batcher) == 0


def test_a_key_that_had_to_shrink_grows_back_slowly(clock: FakeClock) -> None:
    batcher = Batcher(max_batch=4, max_wait_s=0, clock=clock)
    key, other = job(clock).batch_key, job(clock, "b").batch_key
    batcher.shrink(key, 2)
    for _ in range(8):
        batcher.submit(job(clock))
    assert [len(batcher.next_batch() or ()) for _ in range(4)] == [2, 2, 2, 2]
    assert batcher.limit(other) == 4
    for size in (1, 2) * 15:
        batcher.succeeded(key, size)
    assert batcher.limit(key) == 2  # half of those batches were not full and prove nothing
    batcher.succeeded(key, 2)
    assert batcher.limit(key) == 3
    for _ in range(16):
        batcher.succeeded(key, 3)
    assert batcher.limit(key) == 4
    assert not batcher._limits


def test_a_key_never_shrinks_below_one_image(batcher: Batcher, clock: FakeClock) -> None:
    batcher.shrink(job(clock).batch_key, 0)
    assert batcher.limit(job(clock).batch_key) == 1
