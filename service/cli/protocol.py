"""uvicorn's HTTP/1.1, which waits for nobody for ever: neither for a head, nor for an answer to be read.

Whoever sends a byte a minute, or never reads, would hold a connection, and megabytes of answer, for as long
as they like. Bodies have the request's own deadline.
"""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 20.0
"""From a connection, or the first byte of its next request, to the end of that request's head."""

STALL_S = 20.0
"""In which a client must read what was written at once: the middleware writes PIECE bytes of an answer."""


class Protocol(H11Protocol):
    """Ends a connection whose client takes too long over a head, or over reading an answer."""

    _head_due: asyncio.TimerHandle | None = None
    _read_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the clock."""
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        """Stops the clock where the head is complete; starts it with the first byte of the next one."""
        super().data_received(data)
        self._watch_head()

    def on_response_complete(self) -> None:
        """Starts the clock for a head that came with the request before it."""
        super().on_response_complete()
        if self.conn.trailing_data[0]:
            self._watch_head()

    def pause_writing(self) -> None:
        """Told when more is written than the client has read: it has until then to read it."""
        super().pause_writing()
        self._read_due = self.loop.call_later(STALL_S, self.transport.abort)

    def resume_writing(self) -> None:
        """Told when the client has read it."""
        self._read_due = cancelled(self._read_due)
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Tells of a request that is no HTTP; in the middle of an answer nothing can be told any more."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the clocks."""
        self._head_due = cancelled(self._head_due)
        self._read_due = cancelled(self._read_due)
        super().connection_lost(exc)

    def _watch_head(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._head_due = cancelled(self._head_due)
        elif self._head_due is None:
            self._head_due = self.loop.call_later(HEAD_S, self.transport.close)


def cancelled(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """Stops a clock, if it runs; returns what is left of it: None."""
    if timer is not None:
        timer.cancel()
    return None
