"""The innermost layer around the routes: who can't be served in time is told so before any work is done."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.problems import on_service_error
from service.engine.engine import Engine
from service.errors import QueueFull


class AdmissionLayer:
    """Refuses a request that the engine has no room or no time for, before its body is read.

    And before its key and its parameters are looked at: at five times the load that there is room for, most
    of what a refusal costs went there. Whoever asks in a wrong way is told so once there is room.

    routes: those that ask the engine for a place, by path.
    """

    def __init__(self, app: ASGIApp, engine: Engine, routes: Mapping[str, APIRoute]) -> None:
        self.app = app
        self.engine = engine
        self.routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hands one request on, or refuses it."""
        route = self.routes.get(scope["path"]) if scope["type"] == "http" else None
        answer: ASGIApp = self.app
        if route is not None and scope["method"] in (route.methods or ()):
            try:
                self.engine.check(self.allowed_s(Headers(scope=scope)))
            except QueueFull as refusal:
                scope["route"] = route
                answer = await on_service_error(Request(scope), refusal)
        await answer(scope, receive, send)

    def allowed_s(self, headers: Headers) -> float:
        """Seconds that the request may take; the limit where it asks for none, or for nonsense."""
        limit = self.engine.settings.timeout_s
        try:
            wanted = float(headers.get("x-request-timeout", limit))
        except ValueError:
            return limit
        return wanted if 0 < wanted < limit else limit
