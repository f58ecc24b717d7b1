"""The device thread's handling of what goes wrong, with a runner that does as it is told."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

import numpy as np
import pytest
import torch

from service.engine.batcher import Batcher
from service.engine.worker import Worker, is_lost, is_out_of_memory
from service.errors import NotReady, OutOfDeviceMemory, ServiceError
from service.explain.rollout import Rollout
from service.types import Job, Outcome

Fault = Callable[[Sequence[Job]], Exception | None]


class FakeRunner:
    """An image is the number in its pixels; so is its logit, and its map."""

    device = torch.device("cpu")
    torch_threads = 1

    def __init__(self) -> None:
        self.fault: Fault = lambda jobs: None
        self.sizes: list[int] = []

    def run(self, model: object, jobs: Sequence[Job], started: float) -> list[Outcome]:
        self.sizes.append(len(jobs))
        if error := self.fault(jobs):
            raise error
        return [
            Outcome(
                np.full(5, job.pixels[0, 0, 0]),
                None if job.explainer is None else np.full((1, 2, 2), job.pixels[0, 0, 1]),
                0.0,
                0.1,
                0.0,
            )
            for job in jobs
        ]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def runner() -> FakeRunner:
    return FakeRunner()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ended() -> threading.Event:
    return threading.Event()


@pytest.fixture
def worker(runner: FakeRunner, clock: Clock, ended: threading.Event) -> Iterator[Worker]:
    batcher = Batcher(8, 0.0, clock)
    worker = Worker(runner, batcher, lambda: {"a": None}, lambda *batch: None, ended.set)  # type: ignore
    worker.models = {"a": None}  # type: ignore[dict-item]
    yield worker
    batcher.close()
    if worker.is_alive():
        worker.join(10)


def job(logit: float = 1.0, grid: float | None = None) -> Job:
    pixels = np.zeros((3, 4, 4), np.float32)
    pixels[0, 0, :2] = logit, grid or 0
    return Job("a", pixels, None if grid is None else Rollout(), 0.0, 1e9, Future())


def running(jobs: list[Job]) -> list[Job]:
    for each in jobs:
        each.future.set_running_or_notify_cancel()
    return jobs


def larger_than(size: int, error: Exception) -> Fault:
    return lambda jobs: error if len(jobs) > size else None


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee the documentation."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_out_of_memory_halves_the_batch_and_remembers_the_size(
    worker: Worker, runner: FakeRunner, error: Exception
) -> None:
    runner.fault = larger_than(3, error)
    jobs = running([job(i) for i in range(8)])
    worker.compute(jobs)
    assert [each.future.result().logits[0] for each in jobs] == list(range(8))
    assert worker.batcher.limit(jobs[0].batch_key) == 2
    for each in (more := [job() for _ in range(4)]):
        worker.batcher.submit(each)
    assert len(worker.batcher.next_batch() or ()) == 2
    assert more[2].future.cancel()


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_one_image_for_which_there_is_no_memory_is_told_so(
    worker: Worker, runner: FakeRunner, error: Exception
) -> None:
    runner.fault = lambda jobs: error if any(each.pixels[0, 0, 0] == 5 for each in jobs) else None
    jobs = running([job(i) for i in range(8)])
    worker.compute(jobs)
    refusal = jobs[5].future.exception()
    assert isinstance(refusal, OutOfDeviceMemory)
    assert refusal.retry_after
    assert all(each.future.exception() is None for each in jobs if each is not jobs[5])


def test_memory_that_comes_back_is_used_again(worker: Worker, runner: FakeRunner) -> None:
    runner.fault = larger_than(4, torch.OutOfMemoryError("no"))
    key = job().batch_key
    worker.compute(running([job() for _ in range(8)]))
    assert worker.batcher.limit(key) == 4
    runner.fault = lambda jobs: None
    while worker.batcher.limit(key) < 8:
        worker.compute(running([job() for _ in range(worker.batcher.limit(key))]))
    assert len(runner.sizes) < 100


def test_what_failed_holds_none_of_the_batch_any_more(worker: Worker, runner: FakeRunner) -> None:
    def fault(jobs: Sequence[Job]) -> Exception:
        held = np.zeros(10)
        raise RuntimeError(f"cursed {held.shape}")

    runner.fault = fault
    (alone,) = running([job()])
    worker.compute([alone])
    error = alone.future.exception()
    assert error is not None
    assert error.__cause__ is not None
    trace = error.__cause__.__traceback__
    frames = []
    while trace is not None:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    assert [frame.f_locals for frame in frames[1:]] == [{}, {}]


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_an_error_for_their_image_only(worker: Worker, number: float) -> None:
    jobs = running([job(1, 1), job(number, 1), job(1, number), job(1, 2)])
    worker.compute(jobs)
    for bad in jobs[1:3]:
        with pytest.raises(ServiceError, match="no finite numbers for this image"):
            bad.future.result()
    assert jobs[0].future.result()
    assert jobs[3].future.result()


def test_a_batch_that_fails_is_bisected(worker: Worker, runner: FakeRunner) -> None:
    runner.fault = lambda jobs: (
        RuntimeError("cursed") if any(each.pixels[0, 0, 0] == 3 for each in jobs) else None
    )
    jobs = running([job(i) for i in range(8)])
    worker.compute(jobs)
    assert [each.future.exception() is None for each in jobs] == [i != 3 for i in range(8)]
    assert runner.sizes == [8, 4, 2, 2, 1, 1, 4]
    assert worker.batcher.limit(jobs[0].batch_key) == 8


@pytest.mark.parametrize(
    "error",
    [torch.AcceleratorError("CUDA error: unspecified launch failure"), RuntimeError("CUDA error: no device")],
)
def test_a_lost_device_ends_the_thread_after_everybody_was_told(
    worker: Worker, runner: FakeRunner, ended: threading.Event, error: Exception
) -> None:
    runner.fault = lambda jobs: error
    jobs = [job() for _ in range(20)]
    for each in jobs:
        worker.batcher.submit(each)
    worker.start()
    assert ended.wait(10)
    worker.join(10)
    for each in jobs:
        assert isinstance(each.future.exception(0), NotReady)
    assert isinstance(worker.failure, ServiceError)
    assert "The device is lost: CUDA error" in worker.failure.detail
    assert runner.sizes == [8]  # nothing else was tried
    with pytest.raises(NotReady):
        worker.batcher.submit(job())


def test_cuda_that_is_only_out_of_memory_is_not_lost() -> None:
    assert is_out_of_memory(torch.AcceleratorError("CUDA error: out of memory"))
    assert not is_lost(ValueError("CUDA error"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_it_tells_how_long_a_batch_has_been_running(worker: Worker, runner: FakeRunner, clock: Clock) -> None:
    seen = []

    def fault(jobs: Sequence[Job]) -> None:
        clock.now += 31
        seen.append(worker.busy_s)

    runner.fault = fault
    assert worker.busy_s == 0
    worker.compute(running([job()]))
    assert seen == [31]
    assert worker.busy_s == 0


def test_who_gives_up_waiting_for_the_models_does_not_cancel_them(worker: Worker) -> None:
    assert not worker.loaded.cancel()
    worker.start()
    worker.loaded.result(10)
    assert worker.models == {"a": None}
