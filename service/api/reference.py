"""Renders openapi.md, the reference of the HTTP interface, from the app that serves it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from fastapi import FastAPI
from pydantic_core import PydanticUndefined

from service.api.problems import TYPE_PREFIX, WHEN
from service.errors import (
    BadImage,
    BadRequest,
    CannotExplain,
    DeadlineExceeded,
    InvalidParameter,
    NotReady,
    OutOfDeviceMemory,
    QueueFull,
    ServiceError,
    TooLarge,
    Unauthorized,
    UnknownModel,
    UnsupportedMedia,
)
from service.settings import Settings

Json = dict[str, Any]

TOLD = (
    BadImage,
    BadRequest,
    Unauthorized,
    UnknownModel,
    TooLarge,
    UnsupportedMedia,
    InvalidParameter,
    CannotExplain,
    ServiceError,
    QueueFull,
    NotReady,
    OutOfDeviceMemory,
    DeadlineExceeded,
)

INTRODUCTION = """\
# The HTTP interface

Generated from the app by `vit-attention openapi`; a test compares. The same in OpenAPI's own form is at
`/openapi.json`, which names the models that are loaded, with a page to try it out at `/docs`.

## Sending an image

The three POST routes take one image, either way:

    curl --data-binary @cat.jpg -H 'Content-Type: image/jpeg' localhost:8000/predict
    curl -F image=@cat.jpg localhost:8000/predict

A raw body has the content type `image/*`, `application/octet-stream` or none; the bytes decide the format,
not the header. A form (multipart/form-data) has one file field `image` (or `file`) and nothing else.
Options are query parameters; a parameter that the route does not know is refused, not ignored.

JPEG, PNG, WebP, GIF, BMP, TIFF and AVIF are accepted. EXIF orientation is applied; every mode becomes RGB,
transparency over white; of an animation the first frame is taken.

## The picture itself

With `Accept: image/png` the attention routes answer with the PNG instead of JSON: the mask, or the overlay
where one is asked for; the canvas. The labels are in the `X-Labels` header then, as ASCII JSON, the best
ones that fit in 8 KiB. `Accept` is weighed as usual (`q=`); JSON is the default, also for `*/*` and for a
header that allows neither.

    curl --data-binary @cat.jpg -H 'Content-Type: image/jpeg' -H 'Accept: image/png' \\
        'localhost:8000/attention/rollout?overlay=heatmap' -o heatmap.png

## Headers of every response

- `X-Request-ID`: the request's own if it is 1 to 64 letters, digits, `.`, `_` or `-`, else a new one.
- `Server-Timing`: milliseconds in each stage (decode, queue, model, explain, render) and in all (total).

A request may carry `X-Request-Timeout: SECONDS`: an answer after that is worthless, so it becomes a 504.

## API keys

Where the server has API keys (`VIT_ATTENTION_API_KEYS`), requests carry one, as `Authorization: Bearer KEY`
or as `X-API-Key: KEY`. `/healthz`, `/readyz` and the files of the viewer page are open all the same.
"""

EXAMPLES = {
    "/predict": """\
    {"model": {"name": "vit-base-patch16-224", "family": "vit", "digest": "sha256:..."},
     "image": {"width": 640, "height": 480},
     "labels": [{"index": 281, "label": "tabby, tabby cat", "score": 0.91}, ...]}
""",
    "/attention/rollout": """\
    {"model": {...}, "image": {...}, "labels": [...],
     "rollout": {"mask": "<base64 PNG, 8-bit grey>", "overlay": null, "grid": null, "grid_size": [14, 14],
                 "min": 0.0007, "max": 0.021, "head_fusion": "mean", "discard_ratio": 0.0}}
""",
    "/attention/blocks": """\
    {"model": {...}, "image": {...}, "labels": [...],
     "blocks": {"canvas": "<base64 PNG, RGB>", "count": 12, "layout": "row", "columns": 12,
                "panel": {"width": 640, "height": 480}, "scale": 1.0,
                "grid_size": [14, 14], "grids": null, "min": [...], "max": [...]}}
""",
    "/models": """\
    {"models": [{"name": "vit-base-patch16-224", "family": "vit", "digest": "sha256:...",
                 "source": "google/vit-base-patch16-224@...", "licence": "apache-2.0",
                 "input_size": [224, 224], "classes": 1000, "blocks": 12, "heads": 12,
                 "device": "cpu", "precision": "fp32", "default": true,
                 "explains": ["rollout", "blocks"]}]}
""",
}

PROBLEM_EXAMPLE = """\
    {"type": "urn:vit-attention:problem:invalid-parameter", "title": "Invalid parameter", "status": 422,
     "detail": "top_k: shapes-tiny has 10 classes; ask for 1 to 10 labels.", "instance": "/predict",
     "request_id": "5d1c...", "errors": [{"parameter": "top_k", "detail": "shapes-tiny has 10 ..."}]}
"""


def render(app: FastAPI) -> str:
    """The whole of openapi.md."""
    document = app.openapi()
    parts = [
        INTRODUCTION,
        "## Routes\n",
        *(
            route(method, path, operation, document["components"]["schemas"])
            for path, operations in document["paths"].items()
            for method, operation in operations.items()
        ),
        "`GET /` is the viewer page; `GET /docs` and `GET /openapi.json` describe this interface.\n",
        errors(),
        metrics(app),
        settings(),
    ]
    return "\n".join(parts)


def route(method: str, path: str, operation: Json, schemas: Json) -> str:
    """One route: what it does, its parameters, its answers, an example."""
    parts = [f"### {method.upper()} {path}\n", f"{operation['summary']}\n", f"{operation['description']}\n"]
    if parameters := operation.get("parameters"):
        header = ("parameter", "in", "values", "default", "what")
        parts.append(table(header, (parameter_row(parameter) for parameter in parameters)))
    if fields := list(response_fields(operation, schemas)):
        parts.append(table(("field", "type", "what"), fields))
    if path in EXAMPLES:
        parts.append(EXAMPLES[path])
    statuses = ", ".join(status for status in operation["responses"] if status != "200")
    if statuses:
        parts.append(f"Errors: {statuses}.\n")
    return "\n".join(parts)


def parameter_row(parameter: Json) -> tuple[str, ...]:
    """A parameter as a row: name, place, values, default, description."""
    schema = parameter["schema"]
    default = json.dumps(schema["default"]) if schema.get("default") is not None else ""
    place, what = parameter["in"], parameter.get("description", "")
    return f"`{parameter['name']}`", place, values(schema), default.strip('"'), what


def values(schema: Json) -> str:
    """Which values a schema allows, in words."""
    schema = next((entry for entry in schema.get("anyOf", ()) if entry["type"] != "null"), schema)
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema["type"] == "boolean":
        return "`false`, `true`"
    bounds = {
        "minimum": "at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    limits = [f"{words} {schema[key]:g}" for key, words in bounds.items() if key in schema]
    return ", ".join([schema["type"], *limits])


def response_fields(operation: Json, schemas: Json) -> Iterator[tuple[str, ...]]:
    """The fields of a route's JSON answer that its model describes, nested ones with a dot."""
    schema = operation["responses"]["200"].get("content", {}).get("application/json", {}).get("schema")
    if schema:
        yield from fields_of(schema, schemas, "")


def fields_of(schema: Json, schemas: Json, prefix: str) -> Iterator[tuple[str, ...]]:
    """One row a leaf of a schema."""
    schema = resolved(schema, schemas)
    for name, field in schema.get("properties", {}).items():
        inner = resolved(field, schemas)
        items = resolved(inner.get("items", {}), schemas)
        if "properties" in inner:
            yield from fields_of(inner, schemas, f"{prefix}{name}.")
        elif "properties" in items:
            yield from fields_of(items, schemas, f"{prefix}{name}[].")
        else:
            yield f"`{prefix}{name}`", type_name(field), field.get("description", "")


def resolved(schema: Json, schemas: Json) -> Json:
    """The schema that a reference stands for."""
    reference = schema.get("$ref")
    return schemas[reference.rpartition("/")[2]] if reference else schema


def type_name(schema: Json) -> str:
    """A schema's type in words, such as "list of number" or "string or null"."""
    if "anyOf" in schema:
        return " or ".join(type_name(entry) for entry in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {type_name(schema['items'])}"
    return str(schema["type"])


def errors() -> str:
    """The tables of statuses and of problem types."""
    problems = ((f"`{TYPE_PREFIX}{error.type}`", str(error.status), error.title) for error in TOLD)
    return "\n".join(
        [
            "## Errors\n",
            "Every error has a body of type `application/problem+json` (RFC 9457):\n",
            PROBLEM_EXAMPLE,
            "`errors` is there for parameters only. 503 comes with `Retry-After` (seconds) where waiting",
            "helps.\n",
            table(("status", "when"), ((str(status), when) for status, when in WHEN.items())),
            "`type` never changes; a 404 for an unknown route and a 405 have `not-found` and",
            "`method-not-allowed` as its last part.\n",
            table(("type", "status", "title"), problems),
        ]
    )


def metrics(app: FastAPI) -> str:
    """The table of metrics."""
    rows = (
        (f"`{family.name}{'_total' * (family.type == 'counter')}`", family.type, family.documentation)
        for family in app.state.metrics.families()
    )
    return "\n".join(["## Metrics\n", table(("metric", "type", "what"), rows)])


def settings() -> str:
    """The table of settings."""
    prefix = Settings.model_config.get("env_prefix", "")
    rows = (
        (f"`{(prefix + name).upper()}`", default_of(field.default), field.description or "")
        for name, field in Settings.model_fields.items()
    )
    return "\n".join(
        [
            "## Settings\n",
            "From the environment; flags of `vit-attention serve` win. Lists are separated by commas.\n",
            table(("variable", "default", "what"), rows),
        ]
    )


def default_of(default: object) -> str:
    """A setting's default as one would write it."""
    if default in (PydanticUndefined, None):
        return ""
    return f"`{', '.join(default) if isinstance(default, list) else default}`"


def table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [header, tuple("---" for _ in header), *rows]
    return (
        "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        + "\n"
    )
