"""What may be held at once: requests, bytes of bodies, decoded pixels. What does not fit is refused."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.errors import QueueFull


class Budget:
    """So many `things` may be held at once. Used from any thread.

    retry_after: seconds after which another try is worth it, told to who is refused.
    """

    def __init__(self, limit: int, things: str, retry_after: Callable[[], float]) -> None:
        self.limit = limit
        self.things = things
        self.held = 0
        self._retry_after = retry_after
        self._lock = threading.Lock()

    def check(self, amount: int, mine: int = 0) -> None:
        """Raises QueueFull where `amount` more would pass the limit.

        mine: what the asker holds already. Who holds everything that is held may pass the limit, so that
            no request is refused for ever.
        """
        if self.held > mine and self.held + amount > self.limit:
            raise QueueFull(
                f"The requests being served hold {self.held} {self.things} of {self.limit} at most, and "
                f"{amount} more do not fit. Try again after the time in Retry-After.",
                retry_after=self._retry_after(),
            )

    @contextmanager
    def hold(self) -> Iterator[Hold]:
        """A share of the budget, empty at first; all of it is given back at the end of the with block."""
        share = Hold(self)
        try:
            yield share
        finally:
            share.close()


class Hold:
    """One request's share of a budget."""

    def __init__(self, budget: Budget) -> None:
        self.amount = 0
        self._budget = budget
        self._closed = False

    def take(self, amount: int) -> None:
        """Holds that much more; raises QueueFull where it does not fit, or nobody waits for it any more."""
        with self._budget._lock:
            if self._closed:
                raise QueueFull("Nobody waits for the answer any more.")
            self._budget.check(amount, mine=self.amount)
            self._budget.held += amount
            self.amount += amount

    def give_back(self) -> None:
        """Holds nothing any more."""
        with self._budget._lock:
            self._budget.held -= self.amount
            self.amount = 0

    def close(self) -> None:
        """Gives everything back, and takes no more."""
        self._closed = True
        self.give_back()
