"""The viewer page, served from service/web under a policy that lets it load nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def add_page(app: FastAPI, folder: Path) -> None:
    """Serves index.html at / and every other file of the folder at its own path.

    One route a file, and no mount at /, so that unknown paths and methods keep their 404 and 405.
    """
    if not (folder / "index.html").is_file():
        return
    files = StaticFiles(directory=folder)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            name = path.relative_to(folder).as_posix()
            route = "/" if name == "index.html" else f"/{name}"
            app.add_route(route, serve(files, name), methods=["GET"], include_in_schema=False)


def serve(files: StaticFiles, name: str) -> Callable[[Request], Awaitable[Response]]:
    """The handler of one file."""

    async def handler(request: Request) -> Response:
        response = await files.get_response(name, request.scope)
        response.headers.update(HEADERS)
        return response

    return handler
