"""The device thread: takes batches, runs them, and ends every job it took."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

import structlog
import torch

from service.engine.batcher import Batcher
from service.engine.runner import LoadedModel, Runner
from service.errors import NotReady, OutOfDeviceMemory, ServiceError
from service.types import Capture, Job, Outcome

log = structlog.get_logger()

BatchObserver = Callable[[int, Capture, float], None]
"""Told of every batch: images, capture, seconds in the forward pass."""


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
        threads: int,
        load: Callable[[], Mapping[str, LoadedModel]],
        on_batch: BatchObserver,
        on_end: Callable[[], None],
    ) -> None:
        super().__init__(name="device", daemon=True)
        self.runner = runner
        self.batcher = batcher
        self.threads = threads
        self.models: Mapping[str, LoadedModel] = {}
        self.loaded = threading.Event()
        self.failure: Exception | None = None
        self.seconds_per_image = 0.0
        self._load = load
        self._on_batch = on_batch
        self._on_end = on_end

    def run(self) -> None:
        """Loads, then computes batches until the batcher is closed and empty."""
        torch.set_num_threads(self.threads)
        try:
            self.models = self._load()
            self.loaded.set()
            while (batch := self.batcher.next_batch()) is not None:
                self.compute(batch)
        except Exception as error:
            self.failure = error
            if not isinstance(error, ServiceError):
                log.exception("device thread died")
        finally:
            self._fail_what_waits()
            self.loaded.set()
            self._on_end()

    def _fail_what_waits(self) -> None:
        """Nobody may wait for a thread that is gone."""
        self.batcher.close()
        while (batch := self.batcher.next_batch()) is not None:
            for job in batch:
                job.future.set_exception(NotReady("The device thread has ended; try another replica."))

    def compute(self, jobs: Sequence[Job]) -> None:
        """Ends every job of the batch. One that fails is bisected, so that only the culprit fails."""
        started = self.batcher.clock()
        try:
            outcomes = self.runner.run(self.models[jobs[0].model], jobs, started)
        except Exception as error:
            if len(jobs) > 1:
                middle = len(jobs) // 2
                self.compute(jobs[:middle])
                self.compute(jobs[middle:])
            else:
                jobs[0].future.set_exception(as_service_error(error))
            return
        self._observe(jobs, outcomes)
        for job, outcome in zip(jobs, outcomes, strict=True):
            job.future.set_result(outcome)

    def _observe(self, jobs: Sequence[Job], outcomes: Sequence[Outcome]) -> None:
        seconds = outcomes[0].model_s + outcomes[0].explain_s
        recent = seconds / len(jobs)
        self.seconds_per_image += (recent - self.seconds_per_image) * (0.2 if self.seconds_per_image else 1)
        self._on_batch(len(jobs), jobs[0].capture, outcomes[0].model_s)


def as_service_error(error: Exception) -> ServiceError:
    """What a user is told when the forward pass failed for one image; the cause stays attached."""
    if isinstance(error, ServiceError):
        return error
    told: ServiceError
    if isinstance(error, torch.OutOfMemoryError):
        told = OutOfDeviceMemory("The device has no memory left for this image; try again.", retry_after=1)
    else:
        told = ServiceError("The model failed on this image.")
    told.__cause__ = error
    return told
