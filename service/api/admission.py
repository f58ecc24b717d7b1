"""The innermost layer around the routes: who can't be served in time is told so before any work is done."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.keys import Keys
from service.api.problems import on_service_error
from service.engine.engine import Engine
from service.errors import QueueFull


class AdmissionLayer:
    """Refuses a request that the engine has no room or no time for, before its body is read.

    And before its parameters are looked at: at five times the load that there is room for, most of what a
    refusal costs went there. Whoever asks in a wrong way is told so once there is room. A stranger is told
    nothing of the queue, and is left to the routes.

    keys: those of the app.
    routes: those that ask the engine for a place, by path.
    """

    def __init__(self, app: ASGIApp, engine: Engine, keys: Keys, routes: Mapping[str, APIRoute]) -> None:
        self.app = app
        self.engine = engine
        self.keys = keys
        self.routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hands one request on, or refuses it."""
        answer: ASGIApp = self.app
        route = self.routes.get(scope["path"]) if scope["type"] == "http" else None
        if route is not None and scope["method"] in (route.methods or ()):
            headers = Headers(scope=scope)
            try:
                if self.keys.admit(headers):
                    self.engine.check(self.allowed_s(headers))
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
