"""An answer that is an error -> the ServiceError that the server raised."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx

from service.errors import DeadlineExceeded, ServiceError, TooLarge, Unauthorized, Unavailable

_BY_STATUS: dict[int, type[ServiceError]] = {
    401: Unauthorized,
    413: TooLarge,
    429: Unavailable,
    503: Unavailable,
    504: DeadlineExceeded,
}
"""For what a proxy answers in the service's place."""


def service_error(response: httpx.Response) -> ServiceError:
    """The class that the problem's type names, with what the server said.

    The instance carries the response's `status`, and its `request_id` to search the server's log for.
    """
    problem = _problem(response)
    kind = _kind(str(problem.get("type", "")), response.status_code)
    error = kind(
        problem.get("detail") or _plain_detail(response),
        errors=problem.get("errors"),
        retry_after=_seconds(response.headers.get("Retry-After", "")),
    )
    request_id = problem.get("request_id") or response.headers.get("X-Request-ID")
    vars(error).update(status=response.status_code, request_id=request_id)
    return error


def _problem(response: httpx.Response) -> dict[str, Any]:
    """The application/problem+json body; empty where a proxy or another program answered."""
    if "json" not in response.headers.get("Content-Type", ""):
        return {}
    try:
        problem = response.json()
    except ValueError:
        return {}
    return problem if isinstance(problem, dict) else {}


def _kind(uri: str, status: int) -> type[ServiceError]:
    """`uri` ends in the class's own type, as in "urn:vit-attention:problem:queue-full"."""
    name = re.split(r"[/#:]", uri)[-1]
    named = (kind for kind in _family(ServiceError) if kind.type == name)
    return next(named, _BY_STATUS.get(status, ServiceError))


def _family(kind: type[ServiceError]) -> Iterator[type[ServiceError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _family(child)


def _plain_detail(response: httpx.Response) -> str:
    return f"{response.url} answered {response.status_code} {response.reason_phrase}".rstrip() + "."


def _seconds(retry_after: str) -> float | None:
    return float(retry_after) if re.fullmatch(r"\d+(\.\d+)?", retry_after) else None
