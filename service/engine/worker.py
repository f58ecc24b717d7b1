"""The device thread: takes batches, runs them, and ends every job it took."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future

import numpy as np
import structlog
import torch

from service.engine.batcher import Batcher
from service.engine.runner import LoadedModel, Runner
from service.engine.threads import step_back
from service.errors import NotReady, OutOfDeviceMemory, ServiceError
from service.types import Capture, Job, Outcome

log = structlog.get_logger()

BatchObserver = Callable[[int, Capture, float], None]
"""Told of every batch: images, capture, seconds in the forward pass."""

OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "bad_alloc", "bad allocation", "ALLOC_FAILED")


class Worker(threading.Thread):
    """The one thread that touches the device.

    load: called on this thread first; returns the models by name. Whatever it raises is the worker's
        `failure`, and ends it.
    on_end: called when the thread has ended, whether it was asked to or not.
    """

    def __init__(
        self,
        runner: Runner,
        batcher: Batcher,
        load: Callable[[], Mapping[str, LoadedModel]],
        on_batch: BatchObserver,
        on_end: Callable[[], None],
    ) -> None:
        super().__init__(name="device", daemon=True)
        self.runner = runner
        self.batcher = batcher
        self.models: Mapping[str, LoadedModel] = {}
        self.loaded: Future[None] = Future()
        self.loaded.set_running_or_notify_cancel()  # who gives up waiting for it can't cancel it
        self.failure: Exception | None = None
        self.seconds_per_image = 0.0
        self._busy_since: float | None = None
        self._load = load
        self._on_batch = on_batch
        self._on_end = on_end

    @property
    def busy_s(self) -> float:
        """Seconds that the batch on the device has taken so far; 0 between batches."""
        since = self._busy_since
        return 0.0 if since is None else self.batcher.clock() - since

    def run(self) -> None:
        """Loads, then computes batches until the batcher is closed and empty."""
        step_back()
        torch.set_num_threads(self.runner.torch_threads)
        batch: Sequence[Job] | None = None
        try:
            self.models = self._load()
            self.loaded.set_result(None)
            while (batch := self.batcher.next_batch()) is not None:
                self.compute(batch)
        except Exception as error:
            self.failure = error
            if not isinstance(error, ServiceError):
                log.exception("device thread died")
        finally:
            self._fail_what_waits(batch or ())
            if not self.loaded.done():
                self.loaded.set_result(None)
            self._on_end()

    def _fail_what_waits(self, batch: Sequence[Job] | None) -> None:
        """Nobody may wait for a thread that is gone: not those of its last batch, nor those in the queue."""
        self.batcher.close()
        while batch is not None:
            for job in batch:
                if not job.future.done():
                    told = NotReady("The device thread has ended; try another replica.", retry_after=1)
                    job.future.set_exception(told)
            batch = self.batcher.next_batch()

    def compute(self, jobs: Sequence[Job]) -> None:
        """Ends every job of the batch. One that fails is bisected, so that only the culprit fails.

        What the device had no memory for is computed in halves, and so are later batches of its key.
        Raises ServiceError, with its jobs unended, where the device is lost.
        """
        error = self._attempt(jobs)
        if error is None:
            self.batcher.succeeded(jobs[0].batch_key, len(jobs))
            return
        if is_out_of_memory(error):
            if self.runner.device.type == "cuda":
                torch.cuda.empty_cache()
        elif is_lost(error):
            log.error("device lost", exc_info=error)
            raise ServiceError(f"The device is lost: {first_line(error)} Restart the process.") from error
        if len(jobs) == 1:
            jobs[0].future.set_exception(as_service_error(error))
            return
        middle = (len(jobs) + 1) // 2
        if is_out_of_memory(error):
            self.batcher.shrink(jobs[0].batch_key, middle)
            log.warning("no memory for a batch", size=len(jobs), next_size=middle, reason=first_line(error))
        self.compute(jobs[:middle])
        self.compute(jobs[middle:])

    def _attempt(self, jobs: Sequence[Job]) -> Exception | None:
        """Runs the batch and ends its jobs, or returns what went wrong, which holds no tensor any more."""
        started = self._busy_since = self.batcher.clock()
        try:
            outcomes = self.runner.run(self.models[jobs[0].model], jobs, started)
        except Exception as error:
            traceback.clear_frames(error.__traceback__)
            return error
        finally:
            self._busy_since = None
        self._observe(jobs, outcomes)
        for job, outcome in zip(jobs, outcomes, strict=True):
            if is_finite(outcome):
                job.future.set_result(outcome)
            else:
                job.future.set_exception(
                    ServiceError("The model gave no finite numbers for this image; try another one.")
                )
        return None

    def _observe(self, jobs: Sequence[Job], outcomes: Sequence[Outcome]) -> None:
        seconds = outcomes[0].model_s + outcomes[0].explain_s
        self.seconds_per_image = learned(self.seconds_per_image, seconds / len(jobs))
        self._on_batch(len(jobs), jobs[0].capture, outcomes[0].model_s)


def learned(average: float, recent: float) -> float:
    """The moving average with one more measurement in it; 0 stands for none yet."""
    return average + (recent - average) * (0.2 if average else 1)


def is_finite(outcome: Outcome) -> bool:
    """Whether no NaN and no infinity is in what the model gave for an image."""
    maps = outcome.maps
    return bool(np.isfinite(outcome.logits).all() and (maps is None or np.isfinite(maps).all()))


def is_out_of_memory(error: Exception) -> bool:
    """Whether a smaller batch might do: torch's two errors, numpy's, and C++'s through OpenVINO."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)


def is_lost(error: Exception) -> bool:
    """Whether the device computes nothing any more: after such an error CUDA repeats it for ever."""
    return isinstance(error, torch.AcceleratorError) or (
        isinstance(error, RuntimeError) and "CUDA error" in str(error)
    )


def first_line(error: Exception) -> str:
    """What an error says first, as a sentence; torch adds pages of advice."""
    said = str(error).strip().partition("\n")[0] or type(error).__name__
    return said.rstrip(".") + "."


def as_service_error(error: Exception) -> ServiceError:
    """What a user is told when the forward pass failed for one image; the cause stays attached."""
    if isinstance(error, ServiceError):
        return error
    told: ServiceError
    if is_out_of_memory(error):
        told = OutOfDeviceMemory("The device has no memory left for this image; try again.", retry_after=1)
    else:
        told = ServiceError("The model failed on this image.")
    told.__cause__ = error
    return told
