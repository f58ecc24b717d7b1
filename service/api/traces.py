"""OpenTelemetry's view of a request: a span for it and one below that for each stage, from its stage clock.

Imported where the setting `traces` is on; needs the extra otel. The layers that FastAPI and OpenTelemetry
bring record query strings, and end a request's span before all of it is known.
"""

from __future__ import annotations

import asyncio
import time
from typing import cast

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.propagate import extract
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, format_trace_id, set_span_in_context, use_span
from opentelemetry.util.types import AttributeValue
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import __version__
from service.api.middleware import CLIENT_GONE, Trail, method_of
from service.stages import Stages

NAME = "vit-attention"
PREFIX = "vit_attention"


def tracer_provider() -> TracerProvider:
    """Sends spans over OTLP/HTTP beside the requests; OTEL_* variables say which, where to and as whom."""
    named = {SERVICE_NAME: NAME, SERVICE_VERSION: __version__}
    resource = Resource.create({**named, **OTELResourceDetector().detect().attributes})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


class TraceLayer:
    """Traces each request, as part of the trace that `traceparent` names. Needs OutermostLayer's trail."""

    def __init__(self, app: ASGIApp, provider: TracerProvider) -> None:
        self.app = app
        self.tracer = provider.get_tracer(NAME, __version__)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hands one request on; the access line gets the trace's id."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        trail: Trail = scope["state"]["trail"]
        clock = EpochClock(trail.stages)
        span = self.tracer.start_span(
            method_of(scope),
            extract(Headers(scope=scope)),
            SpanKind.SERVER,
            {"http.request.method": method_of(scope), "url.path": scope["path"]},
            start_time=clock.at(trail.stages.started),
        )
        status = 500

        async def noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            with use_span(span, set_status_on_exception=False):
                await self.app(scope, receive, noting_status)
        except asyncio.CancelledError:
            status = CLIENT_GONE
            raise
        finally:
            self._end(span, scope, trail, status, clock)

    def _end(self, span: Span, scope: Scope, trail: Trail, status: int, clock: EpochClock) -> None:
        """Tells the span how the request went, and ends it and those of its stages."""
        route = getattr(scope.get("route"), "path", None)
        if route is not None:
            span.update_name(f"{method_of(scope)} {route}")
            span.set_attribute("http.route", route)
        span.set_attribute("http.response.status_code", status)
        for name, fact in {"request_id": trail.request_id, **trail.facts}.items():
            span.set_attribute(f"{PREFIX}.{name}", cast(AttributeValue, fact))
        if status >= 500:
            span.set_status(StatusCode.ERROR)
        for stage, start, end in trail.stages.spans():
            child = self.tracer.start_span(stage, set_span_in_context(span), start_time=clock.at(start))
            child.end(clock.at(end))
        span.end(clock.at(trail.stages.clock()))
        trail.facts["trace_id"] = format_trace_id(span.get_span_context().trace_id)


class EpochClock:
    """A stage clock's times as nanoseconds since 1970, all by one reading, so that spans keep their order."""

    def __init__(self, stages: Stages) -> None:
        self._zero_ns = time.time_ns() - nanoseconds(stages.clock())

    def at(self, seconds: float) -> int:
        """When the stage clock showed so many seconds."""
        return self._zero_ns + nanoseconds(seconds)


def nanoseconds(seconds: float) -> int:
    """Seconds in nanoseconds."""
    return round(seconds * 1e9)
