"""The app factory: everything an app needs hangs on it, so that many can live in one process."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from fastapi import Depends, FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service import __version__
from service.api import cors, problems, routes
from service.api.admission import AdmissionLayer
from service.api.deps import require_key
from service.api.keys import Keys, api_keys
from service.api.middleware import OutermostLayer
from service.api.page import add_page
from service.api.schemas import Problem
from service.engine.engine import Engine
from service.errors import ServiceError
from service.metrics import Metrics
from service.settings import Settings

log = structlog.get_logger()

WEB = Path(__file__).parent.parent / "web"
TITLE = "ViT Attention Service"
DESCRIPTION = "What a Vision Transformer sees in an image, and what it looked at to see it."


def create_app(settings: Settings, engine: Engine | None = None, metrics: Metrics | None = None) -> FastAPI:
    """An app around an engine, by default a new one with these settings.

    The app's lifespan starts the engine and closes it. Whoever brings an engine of their own and wants its
    batches and drops in /metrics makes it with `on_batch=metrics.observe_batch, on_drop=metrics.count_drop`,
    and passes those metrics too.
    """
    metrics = metrics or Metrics()
    engine = engine or Engine(settings, on_batch=metrics.observe_batch, on_drop=metrics.count_drop)
    app = FastAPI(
        title=TITLE,
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        # FastAPI's own would send query strings and texts of exceptions; the setting `traces` has the say.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
        lifespan=lifespan,
    )
    app.state.settings = settings
    app.state.engine = engine
    app.state.metrics = metrics
    app.state.keys = Keys(api_keys(settings))
    watch(engine, metrics)
    problems.install(app)
    app.include_router(routes.health)
    if app.state.keys:
        locks, refusal = [Depends(require_key)], problems.declare(401)
        app.include_router(routes.service, dependencies=locks, responses=refusal)
    else:
        app.include_router(routes.service)
    add_page(app, WEB)
    add_layers(app, settings, engine, metrics)
    app.openapi = lambda: openapi(app)  # type: ignore[method-assign]
    return app


def add_layers(app: FastAPI, settings: Settings, engine: Engine, metrics: Metrics) -> None:
    """The layers around the routes, the innermost first. Raises ServiceError if traces lack their extra."""
    app.add_middleware(AdmissionLayer, engine=engine, keys=app.state.keys, routes=routes.asking())
    last_resort: ASGIApp = answer_internal_error
    if settings.cors_origins:
        app.add_middleware(cors.for_origins, origins=settings.cors_origins)
        last_resort = cors.for_origins(last_resort, settings.cors_origins)
    app.state.tracer_provider = None
    if settings.traces:
        try:
            from service.api.traces import TraceLayer, tracer_provider
        except ModuleNotFoundError as error:
            raise ServiceError(
                "VIT_ATTENTION_TRACES is on, and OpenTelemetry is not installed: "
                "pip install 'vit-attention-service[otel]', or turn it off."
            ) from error
        app.state.tracer_provider = tracer_provider()
        app.add_middleware(TraceLayer, provider=app.state.tracer_provider)
    app.add_middleware(OutermostLayer, metrics=metrics, last_resort=last_resort)


async def answer_internal_error(scope: Scope, receive: Receive, send: Send) -> None:
    """The answer to an error that nobody expected, as an app of its own."""
    await problems.internal_error(Request(scope))(scope, receive, send)


def watch(engine: Engine, metrics: Metrics) -> None:
    """Shows in /metrics what the engine holds at the moment."""
    metrics.watch_queue(lambda: len(engine.batcher))
    for name, budget in engine.budgets.items():
        metrics.watch_budget(name, partial(getattr, budget, "held"))
    for kind in engine.device_memory():
        metrics.watch_device_memory(kind, partial(memory_of, engine, kind))


def memory_of(engine: Engine, kind: str) -> int:
    """Bytes of device memory of one kind, now."""
    return engine.device_memory()[kind]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Starts the engine, and closes it once the server has stopped taking requests."""
    settings: Settings = app.state.settings
    if not app.state.keys and not is_loopback(settings.host):
        log.warning(
            "the service listens beyond this machine and asks for no API key; set VIT_ATTENTION_API_KEYS "
            "or VIT_ATTENTION_API_KEYS_FILE",
            host=settings.host,
        )
    app.state.engine.start()
    try:
        yield
    finally:
        await app.state.engine.close()
        if app.state.tracer_provider is not None:
            await asyncio.to_thread(app.state.tracer_provider.shutdown)  # sends what is left


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def openapi(app: FastAPI) -> dict[str, Any]:
    """The app's OpenAPI document, made once, with the schema that every error refers to."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        schemas = document["components"]["schemas"]
        problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= problem.pop("$defs") | {"Problem": problem}
        app.openapi_schema = document
    return app.openapi_schema
