"""uvicorn's HTTP/1.1, which waits for a request's head no longer than HEAD_S.

uvicorn itself waits for ever: whoever sends a byte a minute holds a connection, and its descriptor, for as
long as they like. Bodies have the request's own deadline.
"""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 20.0
"""From a connection, or the first byte of its next request, to the end of that request's head."""


class Protocol(H11Protocol):
    """Closes a connection whose client takes too long over a head."""

    _head_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the clock."""
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        """Stops the clock where the head is complete; starts it with the first byte of the next one."""
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the clock."""
        self._stop()
        super().connection_lost(exc)

    def _watch_head(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._stop()
        elif self._head_due is None:
            self._head_due = self.loop.call_later(HEAD_S, self.transport.close)

    def _stop(self) -> None:
        if self._head_due is not None:
            self._head_due.cancel()
            self._head_due = None
