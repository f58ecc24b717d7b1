"""What the routes need from a request: its engine, its API key, its image and its deadline.

Dependencies are coroutines although they wait for nothing: FastAPI sends plain functions to a thread each.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Annotated, cast

from fastapi import Depends, Header, Request, Security
from fastapi.security import APIKeyHeader, HTTPBearer

from service.api.form import Form
from service.api.keys import offered_key
from service.api.middleware import Trail
from service.api.schemas import NeverNull
from service.engine.engine import Engine
from service.errors import BadImage, DeadlineExceeded, TooLarge, Unauthorized, UnsupportedMedia

bearer = HTTPBearer(auto_error=False, description="One of the configured API keys.")
key_header = APIKeyHeader(name="X-API-Key", auto_error=False, description="One of the configured API keys.")


async def the_engine(request: Request) -> Engine:
    """The engine that answers this app's requests."""
    return cast(Engine, request.app.state.engine)


async def the_trail(request: Request) -> Trail:
    """The trail of the request that is being answered."""
    return Trail.of(request)


EngineDep = Annotated[Engine, Depends(the_engine)]
TrailDep = Annotated[Trail, Depends(the_trail)]


async def require_key(
    request: Request,
    bearer: Annotated[object, Security(bearer)],
    key: Annotated[object, Security(key_header)],
) -> None:
    """Raises Unauthorized unless the request carries one of the configured API keys.

    bearer, key: for the documentation; the app's `Keys` read the headers.
    """
    if not request.app.state.keys.admit(request.headers):
        wrong = (
            "The key in the request is not one of the service's."
            if offered_key(request.headers)
            else "This service needs a key."
        )
        raise Unauthorized(f"{wrong} Send one as 'Authorization: Bearer KEY' or as 'X-API-Key: KEY'.")


async def timeout_s(
    engine: EngineDep,
    wanted: Annotated[
        float | None,
        NeverNull(),
        Header(
            alias="X-Request-Timeout",
            gt=0,
            allow_inf_nan=False,
            description="Seconds after which the answer is worthless; the server's own limit caps it.",
        ),
    ] = None,
) -> float:
    """Seconds that this request may take, from its arrival to its answer."""
    limit = engine.settings.timeout_s
    return limit if wanted is None else min(wanted, limit)


TimeoutDep = Annotated[float, Depends(timeout_s)]


async def read_image(request: Request, limit: int, timeout_s: float, take: Callable[[int], None]) -> bytes:
    """The bytes of the request's one image, from a raw body or a form.

    timeout_s: counted from the request's arrival.
    take: told of every part that comes, in bytes; may refuse it.
    Raises TooLarge as soon as more than `limit` bytes are announced or have come, DeadlineExceeded when
    they take longer than the request may, BadRequest, BadImage or UnsupportedMedia for what is no image.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_form = kind == "multipart/form-data"
    if not (is_form or kind in ("", "application/octet-stream") or kind.startswith("image/")):
        raise UnsupportedMedia(
            f"The body's content type is {kind[:100]!r}; send image bytes with "
            "-H 'Content-Type: image/jpeg', or a multipart form with a file field 'image'."
        )
    try:
        async with asyncio.timeout(timeout_s - Trail.of(request).stages.total):
            read = form_image if is_form else raw_image
            data = await read(request, limit, take)
    except TimeoutError:
        raise DeadlineExceeded(f"The body did not arrive within {timeout_s:g} s.") from None
    if not data:
        raise BadImage("The body holds no bytes; send an image: curl --data-binary @photo.jpg")
    return data


async def limited(request: Request, limit: int, take: Callable[[int], None]) -> AsyncGenerator[bytes]:
    """The body in parts as they come, `limit` bytes in all at most."""
    announced = request.headers.get("content-length", "")
    too_large = TooLarge(f"The body is larger than {limit} bytes, which is the limit; send a smaller image.")
    if announced.isdecimal() and int(announced) > limit:
        raise too_large
    received = 0
    async for part in request.stream():
        received += len(part)
        if received > limit:
            raise too_large
        take(len(part))
        yield part


async def raw_image(request: Request, limit: int, take: Callable[[int], None]) -> bytes:
    """The whole body."""
    return b"".join([part async for part in limited(request, limit, take)])


async def form_image(request: Request, limit: int, take: Callable[[int], None]) -> bytes:
    """The one file of a multipart form."""
    form = Form(request.headers["content-type"])
    async for part in limited(request, limit, take):
        form.feed(part)
    return form.image()
