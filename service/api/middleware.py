"""The outermost layer of the app: ids, headers, the access line, metrics, hang-ups, and the last resort.

Pure ASGI: it hands messages on as they come and, once a request's body was read, listens for the client
hanging up; the handler is then cancelled, and with it the job that waits for the device.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from contextlib import suppress
from dataclasses import dataclass, field

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.metrics import Metrics
from service.stages import Stages

log = structlog.get_logger("service.access")

METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})
SENSIBLE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
CLIENT_GONE = 499
LINGER_S = 2.0
BRIEF_S = 0.02
BRIEF_BYTES = 2**20
PIECE = 2**18
"""Bytes of an answer that are written at once; between two the server waits for the client to read."""


@dataclass(frozen=True)
class Trail:
    """What a request leaves behind for its headers, its log line and the metrics.

    facts: logged as they are: the model's name, sizes; nothing of the image itself.
    """

    request_id: str
    stages: Stages
    facts: dict[str, object] = field(default_factory=dict)

    @classmethod
    def of(cls, request: Request) -> Trail:
        """The trail of the request that is being answered."""
        trail: Trail = request.state.trail
        return trail


class OutermostLayer:
    """Wraps the whole app. last_resort: answers in its place when it fails."""

    def __init__(self, app: ASGIApp, metrics: Metrics, last_resort: ASGIApp) -> None:
        self.app = app
        self.last_resort = last_resort
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, or hands on what is no HTTP."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        trail = Trail(request_id(Headers(scope=scope)), Stages())
        scope.setdefault("state", {})["trail"] = trail
        incoming = Incoming(scope, receive)
        outgoing = Outgoing(send, incoming, trail)
        try:
            await self._answer_unless_gone(scope, incoming, outgoing)
        finally:
            self._record(scope, trail, incoming, outgoing)

    async def _answer_unless_gone(self, scope: Scope, incoming: Incoming, outgoing: Outgoing) -> None:
        """Runs the app; cancels it when the client hangs up before the answer is complete."""

        async def watch() -> None:
            await incoming.hung_up()
            if not outgoing.complete:
                answer.cancel()

        async with asyncio.TaskGroup() as tasks:
            answer = tasks.create_task(self._answer(scope, incoming, outgoing))
            watcher = tasks.create_task(watch())
            answer.add_done_callback(lambda _: watcher.cancel())

    async def _answer(self, scope: Scope, incoming: Incoming, outgoing: Outgoing) -> None:
        """Runs the app; what it fails to handle becomes a logged traceback and a 500 without internals."""
        try:
            await self.app(scope, incoming, outgoing)
        except Exception:
            log.exception("unhandled error", request_id=outgoing.trail.request_id, path=scope["path"])
            if outgoing.status is not None:
                raise
            await self.last_resort(scope, incoming, outgoing)

    def _record(self, scope: Scope, trail: Trail, incoming: Incoming, outgoing: Outgoing) -> None:
        """Writes the access line and counts the request."""
        route = getattr(scope.get("route"), "path", "unmatched")
        status = CLIENT_GONE if incoming.gone and not outgoing.complete else outgoing.status or 500
        seconds = trail.stages.total if outgoing.seconds is None else outgoing.seconds
        if status == CLIENT_GONE:
            self.metrics.count_cancellation()
        self.metrics.observe_request(method_of(scope), route, status, seconds, trail.stages.seconds)
        log.info(
            "request",
            method=scope["method"],
            route=route,
            path=scope["path"],
            status=status,
            ms=milliseconds(seconds),
            request_id=trail.request_id,
            **trail.facts,
            stages_ms={stage: milliseconds(spent) for stage, spent in trail.stages.seconds.items()},
        )


class Incoming:
    """The app's `receive`. It never tells of a hang-up: `hung_up` does, and the app is cancelled."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.receive = receive
        headers = Headers(scope=scope)
        self.unread = scope["http_version"].startswith("1") and declares_body(headers)
        self.brief = announces_little(headers)
        self.gone = False
        self._listening = asyncio.Event()

    async def __call__(self) -> Message:
        """The next part of the body; after the last one there is nothing to wait for but a hang-up."""
        if not self._listening.is_set():
            message = await self.receive()
            if message["type"] == "http.request":
                if not message.get("more_body", False):
                    self.unread = False
                    self._listening.set()
                return message
            self.gone = True
            self._listening.set()
        return await asyncio.Future()

    async def hung_up(self) -> None:
        """Returns when the client is gone; listens only once the body was read, so takes no part of it."""
        await self._listening.wait()
        while not self.gone:
            self.gone = (await self.receive())["type"] == "http.disconnect"

    async def discard(self, seconds: float) -> None:
        """Reads what is left of the body and drops it, for that long at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while (message := await self.receive()).get("more_body", False):
                    pass
                self.unread = False
                self.gone = message["type"] == "http.disconnect"
                self._listening.set()


class Outgoing:
    """The app's `send`: adds the headers of every response and remembers how it went.

    An answer given before the body was read (too large, no key, no room) ends the connection, unless the body
    is small and here already, or nearly. Before it ends, the rest of the body is dropped for a while: closing
    at once could wipe the answer out before it is read.
    """

    def __init__(self, send: Send, incoming: Incoming, trail: Trail) -> None:
        self.send = send
        self.incoming = incoming
        self.trail = trail
        self.status: int | None = None
        self.seconds: float | None = None

    @property
    def complete(self) -> bool:
        """Whether the whole response was sent."""
        return self.seconds is not None

    async def __call__(self, message: Message) -> None:
        """Sends one message of the response."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.incoming.unread and self.incoming.brief:
                await self.incoming.discard(BRIEF_S)
            self._add_headers(message)
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            self.seconds = self.trail.stages.total
            if self.incoming.unread:
                await self.send({**message, "more_body": True})
                await self.incoming.discard(LINGER_S)
                message = {"type": "http.response.body"}
        if message["type"] == "http.response.body":
            message = await self._send_but_the_last_piece(message)
        await self.send(message)

    async def _send_but_the_last_piece(self, message: Message) -> Message:
        """Sends a long body up to its last piece, which is returned."""
        body = message.get("body", b"")
        last = max(0, len(body) - 1) // PIECE * PIECE
        for start in range(0, last, PIECE):
            await self.send({**message, "body": body[start : start + PIECE], "more_body": True})
        return {**message, "body": body[last:]}

    def _add_headers(self, message: Message) -> None:
        headers = MutableHeaders(raw=message.setdefault("headers", []))
        headers["X-Request-ID"] = self.trail.request_id
        headers["Server-Timing"] = self.trail.stages.server_timing()
        if self.incoming.unread:
            headers["Connection"] = "close"


def method_of(scope: Scope) -> str:
    """The request's method; those that anybody can invent are one, and fill no table."""
    return scope["method"] if scope["method"] in METHODS else "_OTHER"


def request_id(headers: Headers) -> str:
    """The client's X-Request-ID if it is sensible, else a new one."""
    wanted = headers.get("x-request-id", "")
    return wanted if SENSIBLE_ID.fullmatch(wanted) else uuid.uuid4().hex


def declares_body(headers: Headers) -> bool:
    """Whether a request's head says that a body follows."""
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


def announces_little(headers: Headers) -> bool:
    """Whether the body that a request's head announces is small, and the client sends it unasked."""
    length = headers.get("content-length", "")
    return length.isdecimal() and int(length) <= BRIEF_BYTES and "expect" not in headers


def milliseconds(seconds: float) -> float:
    """Seconds as milliseconds, to a tenth."""
    return round(seconds * 1000, 1)
