"""The queue in front of a device, and the policy that cuts batches from it. Knows no torch.

Greedy: the device takes what waits, oldest first, as many as share the oldest job's batch key. A batch
that is not full waits at most `max_wait_s`, and only while other images are on their way to the queue:
a lone request never waits. A cancelled job leaves the queue at once, an expired one before the next batch.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from service.errors import DeadlineExceeded, NotReady
from service.types import Capture, Clock, Job, Outcome, Size

BatchKey = tuple[str, Size, Capture]
"""Job.batch_key: what the jobs of one forward pass have in common."""

FULL_BATCHES_TO_GROW = 16


class Batcher:
    """Threads submit jobs; one device thread takes batches.

    max_batch: jobs in one batch at most; fewer of a key for which the device had no memory (see `shrink`).
    max_wait_s: how long the oldest job of an unfinished batch may wait for company.
    clock: the one that jobs' `submitted` and `deadline` are on.
    """

    def __init__(self, max_batch: int, max_wait_s: float, clock: Clock) -> None:
        self.max_batch = max_batch
        self.max_wait_s = max_wait_s
        self.clock = clock
        self._waiting: dict[Future[Outcome], Job] = {}  # oldest first
        self._limits: dict[BatchKey, float] = {}  # of the keys whose batches had to shrink
        self._changed = threading.Condition()
        self._arriving = 0
        self._closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    @contextmanager
    def arriving(self) -> Iterator[None]:
        """Announces a job that will be submitted inside the with block, once its image is decoded."""
        with self._changed:
            self._arriving += 1
        try:
            yield
        finally:
            with self._changed:
                self._arriving -= 1
                self._changed.notify()

    def submit(self, job: Job) -> None:
        """Queues a job; its future will end in an Outcome, an error or a cancellation.

        Raises NotReady once the batcher is closed.
        """
        with self._changed:
            if self._closed:
                raise NotReady(
                    "The service is shutting down and takes no new work; try another replica.", retry_after=1
                )
            self._waiting[job.future] = job
            self._changed.notify()
        job.future.add_done_callback(self._forget_cancelled)

    def close(self) -> None:
        """Takes no more jobs. What waits is still handed out; then next_batch returns None."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def next_batch(self) -> list[Job] | None:
        """Blocks until there is a batch to compute; None when closed and empty.

        The jobs' futures are running from here on: they can't be cancelled any more.
        """
        with self._changed:
            while True:
                self._drop_expired()
                wait_s = self._wait_s()
                if wait_s == 0:
                    if batch := self._cut():
                        return batch
                elif self._closed and not self._waiting:
                    return None
                else:
                    self._changed.wait(wait_s)

    def limit(self, key: BatchKey) -> int:
        """Jobs in one batch of that key at most."""
        return int(self._limits.get(key, self.max_batch))

    def shrink(self, key: BatchKey, size: int) -> None:
        """Remembers that the device has memory for no more than `size` jobs of that key, 1 at least."""
        self._limits[key] = max(1, size)

    def succeeded(self, key: BatchKey, size: int) -> None:
        """Lets a key that had to shrink grow again, by one job after so many full batches."""
        if key in self._limits and size >= self.limit(key):
            self._limits[key] += 1 / FULL_BATCHES_TO_GROW
            if self._limits[key] >= self.max_batch:
                del self._limits[key]

    def _wait_s(self) -> float | None:
        """0: cut a batch now; None: nothing waits; else how long the oldest job may wait for company."""
        if not self._waiting:
            return None
        oldest = next(iter(self._waiting.values()))
        size = sum(job.batch_key == oldest.batch_key for job in self._waiting.values())
        if size >= self.limit(oldest.batch_key) or not self._arriving or self._closed:
            return 0
        return max(0.0, oldest.submitted + self.max_wait_s - self.clock())

    def _cut(self) -> list[Job]:
        """Takes the oldest job and those that can share its forward pass, less the cancelled ones."""
        key = next(iter(self._waiting.values())).batch_key
        batch: list[Job] = []
        for future, job in list(self._waiting.items()):
            if job.batch_key == key and len(batch) < self.limit(key):
                del self._waiting[future]
                if future.set_running_or_notify_cancel():
                    batch.append(job)
        return batch

    def _drop_expired(self) -> None:
        """Ends the jobs that nobody waits for any more."""
        now = self.clock()
        for future, job in list(self._waiting.items()):
            if job.deadline <= now:
                del self._waiting[future]
                if future.set_running_or_notify_cancel():
                    future.set_exception(deadline_exceeded(now - job.submitted))

    def _forget_cancelled(self, future: Future[Outcome]) -> None:
        if future.cancelled():
            with self._changed:
                self._waiting.pop(future, None)


def deadline_exceeded(waited_s: float) -> DeadlineExceeded:
    """The error for a job that waited too long, in seconds."""
    return DeadlineExceeded(
        f"The deadline passed after {waited_s:.1f} s, before the answer was ready. "
        "Allow more time with X-Request-Timeout, or send fewer requests at once."
    )
