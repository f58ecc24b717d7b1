"""Every error as problem details (RFC 9457): the handlers, and what OpenAPI says about them."""

from __future__ import annotations

import http
import json
import math
import typing
from collections.abc import Mapping
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from service.api.schemas import ParameterError, Problem
from service.errors import InvalidParameter, ServiceError

log = structlog.get_logger("service.api")

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:vit-attention:problem:"

WHEN = {
    400: "An empty or undecodable image, two images, or a malformed form.",
    401: "An API key is configured and the request lacks it.",
    404: "Unknown route or model.",
    413: "A body over the byte limit, or an image over the pixel limit.",
    415: "Neither image bytes nor multipart, or an image format that is not accepted.",
    422: "A parameter out of range, or an explanation that the model's family can't give.",
    500: "An error of the service itself.",
    503: "Queue full, loading, stalled, draining, or no device memory for this image; see Retry-After.",
    504: "The deadline passed before the answer was ready.",
}

HEADERS: dict[int, dict[str, Any]] = {
    401: {
        "WWW-Authenticate": {
            "description": "How a key is sent.",
            "required": True,
            "schema": {"type": "string", "const": "Bearer"},
        }
    },
    503: {
        "Retry-After": {
            "description": "Seconds after which to try again, where that helps.",
            "schema": {"type": "integer", "minimum": 1},
        }
    },
}


def install(app: FastAPI) -> None:
    """Makes problem details of everything that a handler or the framework raises."""
    app.add_exception_handler(ServiceError, on_service_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(RequestValidationError, on_validation_error)


def declare(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI responses of a route that can fail with these statuses."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        status: {"description": WHEN[status], "content": content, "headers": HEADERS.get(status, {})}
        for status in statuses
    }


def answer(request: Request, problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """The response that carries a problem; counts it by its type."""
    request.app.state.metrics.count_refusal(problem.type.removeprefix(TYPE_PREFIX))
    body = problem.model_dump_json(exclude_none=True)
    return Response(body, problem.status, headers, media_type=MEDIA_TYPE)


def problem(
    request: Request,
    kind: str,
    title: str,
    status: int,
    detail: str,
    errors: list[ParameterError] | None = None,
) -> Problem:
    """The problem of this request; `kind` is the last part of its type."""
    return Problem(
        type=TYPE_PREFIX + kind,
        title=title,
        status=status,
        detail=detail,
        instance=request.url.path,
        request_id=request.state.trail.request_id,
        errors=errors,
    )


async def on_service_error(request: Request, error: Exception) -> Response:
    """Answers what the service raised."""
    assert isinstance(error, ServiceError)
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.status == 500:
        log.error("failed", request_id=request.state.trail.request_id, exc_info=error)
    errors = [ParameterError(**entry) for entry in error.errors] if error.errors else None
    told = problem(request, error.type, error.title, error.status, error.detail, errors)
    return answer(request, told, headers)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Answers what the framework raised: no such route, no such method."""
    assert isinstance(error, HTTPException)
    title = http.HTTPStatus(error.status_code).phrase
    kind = title.lower().replace(" ", "-")
    told = problem(request, kind, title, error.status_code, sentence(request, error))
    return answer(request, told, error.headers)


def sentence(request: Request, error: HTTPException) -> str:
    """What to tell about an error of the framework, with the remedy."""
    path = request.url.path
    if error.status_code == 404:
        return f"There is nothing at {path}; /docs lists the routes."
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        return f"{path} does not take {request.method}; use {allowed}."
    return error.detail


async def on_validation_error(request: Request, error: Exception) -> Response:
    """Answers parameters that are out of range, unknown or not what they should be."""
    assert isinstance(error, RequestValidationError)
    errors = [parameter_error(request, entry) for entry in error.errors()]
    detail = " ".join(f"{entry.parameter}: {entry.detail}" for entry in errors)
    told = problem(
        request, InvalidParameter.type, InvalidParameter.title, InvalidParameter.status, detail, errors
    )
    return answer(request, told)


def parameter_error(request: Request, entry: Mapping[str, Any]) -> ParameterError:
    """One of pydantic's errors, with the parameter's name as the client wrote it."""
    parameter = ".".join(str(part) for part in entry["loc"][1:]) or str(entry["loc"][0])
    if entry["type"] == "extra_forbidden":
        allowed = ", ".join(option_names(request.scope["endpoint"]))
        return ParameterError(parameter=parameter, detail=f"There is no such parameter; there are {allowed}.")
    value = json.dumps(entry["input"], default=str)[:100]
    return ParameterError(parameter=parameter, detail=f"{entry['msg']}; got {value}.")


def option_names(endpoint: object) -> list[str]:
    """The query parameters that a route takes."""
    hints = typing.get_type_hints(endpoint)
    hints.pop("return", None)
    return [
        name
        for hint in hints.values()
        if isinstance(hint, type) and issubclass(hint, BaseModel)
        for name in hint.model_fields
    ]


def internal_error(request: Request) -> Response:
    """The answer to an error that nobody expected; the log has the traceback under the request id."""
    told = problem(
        request,
        ServiceError.type,
        ServiceError.title,
        ServiceError.status,
        "Something went wrong inside the service; its log tells more under this request_id.",
    )
    return answer(request, told)
