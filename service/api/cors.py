"""Which pages of other origins may call the service: none, unless the settings name them."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

METHODS = ("GET", "POST")
REQUEST_HEADERS = ("Authorization", "Content-Type", "X-API-Key", "X-Request-ID", "X-Request-Timeout")
RESPONSE_HEADERS = ("Retry-After", "Server-Timing", "WWW-Authenticate", "X-Labels", "X-Request-ID")
"""Those that a page's script may read, besides the few that it always may."""


def for_origins(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """The app, called by pages of these origins too; "*" is any. It never asks for cookies."""
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=METHODS,
        allow_headers=REQUEST_HEADERS,
        expose_headers=RESPONSE_HEADERS,
    )
