"""The routes: each reads its request, asks the engine, and hands the answer to be written."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any, ParamSpec

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.routing import APIRoute
from starlette.responses import HTMLResponse, JSONResponse, Response

from service.api.answers import (
    JSON,
    PNG,
    blocks_json,
    model_card,
    picture,
    predict_response,
    rollout_json,
)
from service.api.deps import EngineDep, TimeoutDep, TrailDep, read_image
from service.api.middleware import Trail
from service.api.negotiation import preferred
from service.api.problems import declare
from service.api.schemas import (
    BlocksOptions,
    BlocksResponse,
    Health,
    ModelsResponse,
    PredictOptions,
    PredictResponse,
    RolloutOptions,
    RolloutResponse,
)
from service.engine.engine import Engine
from service.engine.runner import LoadedModel
from service.errors import InvalidParameter, NotReady
from service.types import Prediction

P = ParamSpec("P")

ASKING = declare(400, 404, 413, 415, 422, 500, 503, 504)
BINARY = {"schema": {"type": "string", "format": "binary"}}
IMAGE: dict[str, Any] = {"type": "string", "format": "binary", "contentMediaType": "image/*"}
IMAGE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "One image: JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF. The bytes decide the format.",
        "content": {
            "image/*": {"schema": IMAGE},
            "application/octet-stream": {"schema": IMAGE},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "description": "One file and nothing else; the field may be called `file` as well.",
                    "properties": {"image": IMAGE},
                    "required": ["image"],
                    "additionalProperties": False,
                },
                "encoding": {"image": {"contentType": "image/*"}},
            },
        },
    }
}


def or_picture(what: str) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI response of a route that also answers with the picture itself."""
    labels = {
        "description": "With image/png: the labels as ASCII JSON, the best ones that fit in 8 KiB.",
        "schema": {"type": "string"},
    }
    return {
        200: {
            "description": f"JSON, or with 'Accept: image/png' the {what} itself.",
            "content": {PNG: BINARY},
            "headers": {"X-Labels": labels},
        }
    }


health = APIRouter(tags=["health"])
service = APIRouter()


@health.get("/healthz", summary="Liveness", responses=declare(503))
async def healthz(engine: EngineDep) -> Health:
    """200 while the process can serve; 503 once the device thread is dead: restart the process."""
    if not engine.alive:
        raise NotReady("The device thread is dead; restart the process.")
    return Health()


@health.get("/readyz", summary="Readiness", responses=declare(503))
async def readyz(engine: EngineDep) -> Health:
    """200 when requests are served; 503 while loading, warming up, draining or stalled."""
    if engine.not_ready is not None:
        raise NotReady(f"Not ready: {engine.not_ready}.", retry_after=1)
    return Health()


@service.get("/models", summary="The loaded models", responses=declare(503))
async def models(engine: EngineDep) -> ModelsResponse:
    """The loaded models, the default one first; an empty list while they load."""
    return ModelsResponse(models=[model_card(engine, model) for model in engine.models.values()])


@service.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request) -> Response:
    """The metrics as Prometheus text."""
    shown = request.app.state.metrics
    return Response(shown.render(), headers={"Content-Type": shown.content_type})


@service.get("/openapi.json", include_in_schema=False)
async def openapi_json(request: Request, engine: EngineDep) -> JSONResponse:
    """The OpenAPI document; once models are loaded, `model` and `top_k` are restricted to what they take."""
    app: FastAPI = request.app
    document = copy.deepcopy(app.openapi())
    for path, operations in document["paths"].items():
        if able := answering(engine, path):
            narrow(operations, able)
    return JSONResponse(document)


@service.get("/docs", include_in_schema=False)
async def docs(request: Request) -> HTMLResponse:
    """FastAPI's page for trying the routes out."""
    app: FastAPI = request.app
    return get_swagger_ui_html(openapi_url="openapi.json", title=app.title)


@service.post("/predict", summary="What does the image show?", responses=ASKING, openapi_extra=IMAGE_BODY)
async def predict(
    request: Request,
    engine: EngineDep,
    trail: TrailDep,
    timeout_s: TimeoutDep,
    options: Annotated[PredictOptions, Query()],
) -> PredictResponse:
    """The labels of the image, highest score first."""
    model, top_k = chosen(engine, trail, options)
    async with image_of(request, engine, trail, timeout_s) as data:
        answer = await engine.predict(data, model, top_k, timeout_s - trail.stages.total, trail.stages)
    note(trail, answer)
    return predict_response(model, answer)


@service.post(
    "/attention/rollout",
    summary="What did the model look at?",
    response_model=RolloutResponse,
    responses=ASKING | or_picture("mask, or the overlay when one is asked for,"),
    openapi_extra=IMAGE_BODY,
)
async def rollout(
    request: Request,
    engine: EngineDep,
    trail: TrailDep,
    timeout_s: TimeoutDep,
    options: Annotated[RolloutOptions, Query()],
) -> Response:
    """The labels and one map over all blocks: attention rollout."""
    model, top_k = chosen(engine, trail, options)
    async with image_of(request, engine, trail, timeout_s) as data:
        answer = await engine.rollout(
            data,
            model,
            top_k,
            timeout_s - trail.stages.total,
            trail.stages,
            head_fusion=options.head_fusion,
            discard_ratio=options.discard_ratio,
            overlay=options.overlay,
        )
    note(trail, answer.prediction)
    if wants_picture(request):
        return picture(answer.overlay or answer.mask, answer.prediction)
    return await json_response(engine, trail, rollout_json, model, answer, options)


@service.post(
    "/attention/blocks",
    summary="What did each block look at?",
    response_model=BlocksResponse,
    responses=ASKING | or_picture("canvas"),
    openapi_extra=IMAGE_BODY,
)
async def blocks(
    request: Request,
    engine: EngineDep,
    trail: TrailDep,
    timeout_s: TimeoutDep,
    options: Annotated[BlocksOptions, Query()],
) -> Response:
    """The labels and a canvas with a panel a block."""
    model, top_k = chosen(engine, trail, options)
    async with image_of(request, engine, trail, timeout_s) as data:
        answer = await engine.blocks(
            data,
            model,
            top_k,
            timeout_s - trail.stages.total,
            trail.stages,
            layout=options.layout,
            max_side=options.max_side,
        )
    note(trail, answer.prediction)
    if wants_picture(request):
        return picture(answer.canvas, answer.prediction)
    return await json_response(engine, trail, blocks_json, model, answer, options)


def asking() -> dict[str, APIRoute]:
    """The routes that ask the engine about an image, by path."""
    return {
        route.path: route
        for route in service.routes
        if isinstance(route, APIRoute) and "POST" in (route.methods or ())
    }


def answering(engine: Engine, path: str) -> list[LoadedModel]:
    """The loaded models that can answer an image route, by its path."""
    explanation = path.removeprefix("/attention/")
    return [
        model
        for model in engine.models.values()
        if path == "/predict" or explanation in engine.explains(model)
    ]


def narrow(operations: dict[str, Any], models: list[LoadedModel]) -> None:
    """Restricts `model` and `top_k`, in the operations of one path, to what these models take."""
    most = max(model.manifest.architecture.classes for model in models)
    for operation in operations.values():
        schemas = {entry["name"]: entry["schema"] for entry in operation.get("parameters", ())}
        if "model" in schemas:
            schemas["model"]["enum"] = [model.manifest.name for model in models]
        if "top_k" in schemas:
            schemas["top_k"]["maximum"] = most
            schemas["top_k"]["default"] = min(schemas["top_k"]["default"], most)


def chosen(engine: Engine, trail: Trail, options: PredictOptions) -> tuple[LoadedModel, int]:
    """The model asked for, and how many labels. Raises UnknownModel, NotReady or InvalidParameter."""
    model = engine.model(options.model)
    trail.facts["model"] = model.manifest.name
    classes = model.manifest.architecture.classes
    if "top_k" not in options.model_fields_set:
        return model, min(options.top_k, classes)
    if options.top_k > classes:
        told = f"{model.manifest.name} has {classes} classes; ask for 1 to {classes} labels."
        raise InvalidParameter(f"top_k: {told}", errors=[{"parameter": "top_k", "detail": told}])
    return model, options.top_k


@asynccontextmanager
async def image_of(request: Request, engine: Engine, trail: Trail, timeout_s: float) -> AsyncIterator[bytes]:
    """The bytes of the request's image, noted in its trail and held against the budget inside the block."""
    with engine.bytes.hold() as held:
        data = await read_image(request, engine.settings.max_body_bytes, timeout_s, held.take)
        trail.facts["image_bytes"] = len(data)
        yield data


def note(trail: Trail, prediction: Prediction) -> None:
    """Remembers the image's size for the access line."""
    trail.facts["width"], trail.facts["height"] = prediction.width, prediction.height


def wants_picture(request: Request) -> bool:
    """Whether the client prefers the picture itself."""
    accept = ",".join(request.headers.getlist("accept"))
    return preferred(accept, (JSON, PNG)) == PNG


async def json_response(
    engine: Engine, trail: Trail, write: Callable[P, bytes], *args: P.args, **kwargs: P.kwargs
) -> Response:
    """The JSON that write(*args) returns, written beside the event loop: it may hold megabytes of picture."""
    with trail.stages.measure("render"):
        body = await engine.in_pool(write, *args, **kwargs)
    return Response(body, media_type=JSON, headers={"Vary": "Accept"})
