"""Traces of requests: what a span holds, what it must not hold, and that the last ones are sent."""

import asyncio
import http.server
import socket
import sys
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI

from service.api.app import create_app
from service.errors import QueueFull, ServiceError
from service.settings import Settings

pytest.importorskip("opentelemetry.sdk", reason="traces need the extra otel")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="traces need the extra otel")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


@pytest.fixture(autouse=True)
def no_otel_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_SDK_DISABLED", "OTEL_TRACES_SAMPLER", "OTEL_PROPAGATORS", "OTEL_SERVICE_NAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    monkeypatch.setattr("service.api.traces.OTLPSpanExporter", lambda: exporter)
    return exporter


@pytest.fixture
def settings() -> Settings:
    return Settings(traces=True, cors_origins=["https://a.example"], max_body_bytes=200_000, timeout_s=5)


@pytest.fixture
def app(settings, engine, metrics, exported) -> FastAPI:
    return create_app(settings, engine, metrics)


@pytest.fixture
def spans(app, exported):
    """The spans by name, once the app has sent them."""

    def sent() -> dict[str, ReadableSpan]:
        app.state.tracer_provider.force_flush()
        return {span.name: span for span in exported.get_finished_spans()}

    yield sent
    app.state.tracer_provider.shutdown()


async def test_a_request_is_a_span_with_its_stages_below(client, jpeg, spans, log_lines):
    await client.post("/attention/rollout", content=jpeg, headers={"X-Request-ID": "me"})
    found = spans()
    assert list(found) == ["decode", "model", "render", "POST /attention/rollout"]
    server = found.pop("POST /attention/rollout")
    assert server.kind is SpanKind.SERVER
    assert server.parent is None
    assert server.status.status_code is StatusCode.UNSET
    assert dict(server.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "/attention/rollout",
        "http.response.status_code": 200,
        "url.path": "/attention/rollout",
        "vit_attention.request_id": "me",
        "vit_attention.model": "tiny",
        "vit_attention.image_bytes": len(jpeg),
        "vit_attention.width": 40,
        "vit_attention.height": 30,
    }
    for stage in found.values():
        assert stage.parent.span_id == server.context.span_id
        assert not stage.attributes
    assert server.start_time < found["render"].start_time < found["render"].end_time < server.end_time
    took = {name: (span.end_time - span.start_time) / 1e6 for name, span in found.items()}
    assert took["decode"] == pytest.approx(2, abs=0.01)
    assert took["model"] == pytest.approx(10, abs=0.01)
    (line,) = log_lines
    assert took["render"] == pytest.approx(line["stages_ms"]["render"], abs=0.06)
    assert line["trace_id"] == f"{server.context.trace_id:032x}"


async def test_spans_lie_in_this_time(client, jpeg, spans):
    before = time.time_ns()
    await client.post("/predict", content=jpeg)
    server = spans()["POST /predict"]
    assert before - 1e6 < server.start_time < server.end_time < time.time_ns() + 1e6


async def test_a_request_joins_the_trace_that_it_names(client, spans, log_lines):
    await client.get("/models", headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    server = spans()["GET /models"]
    assert (f"{server.context.trace_id:032x}", f"{server.parent.span_id:016x}") == (TRACE, PARENT)
    assert log_lines[-1]["trace_id"] == TRACE


async def test_what_its_caller_does_not_sample_is_not_sent(client, jpeg, spans, log_lines):
    await client.post("/predict", content=jpeg, headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
    assert not spans()
    assert log_lines[-1]["trace_id"] == TRACE


@pytest.mark.parametrize("nonsense", ["", "00-1-1-01", "\x1b[2J", "x" * 5000])
async def test_a_senseless_trace_is_replaced(client, spans, nonsense):
    assert (await client.get("/models", headers={"traceparent": nonsense})).status_code == 200
    assert spans()["GET /models"].parent is None


async def test_an_unknown_route_names_no_span(client, spans):
    await client.get("/nowhere/4711")
    assert spans()["GET"].attributes["http.response.status_code"] == 404
    assert "http.route" not in spans()["GET"].attributes


async def test_an_invented_method_names_no_span(client, spans):
    await client.request("GET-4711", "/models")
    assert spans()["_OTHER /models"].attributes["http.request.method"] == "_OTHER"


async def test_refusals_and_preflights_are_traced_too(client, engine, spans, jpeg):
    engine.raises = QueueFull("Full.", retry_after=1)
    await client.post("/predict", content=jpeg)
    wanted = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    await client.options("/predict", headers=wanted)
    server = spans()["POST /predict"]
    assert server.attributes["http.response.status_code"] == 503
    assert server.status.status_code is StatusCode.ERROR
    assert spans()["OPTIONS"].attributes["http.response.status_code"] == 200


async def test_an_unexpected_error_is_in_its_span(client, engine, spans, jpeg):
    engine.raises = RuntimeError("the cause")
    assert (await client.post("/predict", content=jpeg)).status_code == 500
    server = spans()["POST /predict"]
    assert server.attributes["http.response.status_code"] == 500
    assert server.status.status_code is StatusCode.ERROR
    assert [event.attributes["exception.message"] for event in server.events] == ["the cause"]


async def test_who_hangs_up_is_cancelled_and_traced(app, engine, spans, jpeg, log_lines):
    engine.gate.clear()
    messages = [{"type": "http.request", "body": jpeg}, {"type": "http.disconnect"}]

    async def receive() -> dict[str, object]:
        if len(messages) == 1:
            while not engine.asked:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        return messages.pop(0)

    async def send(message: dict[str, object]) -> None:
        raise AssertionError(message)

    scope = {"type": "http", "http_version": "1.1", "method": "POST", "path": "/predict", "headers": []}
    async with asyncio.timeout(5):
        await app({**scope, "query_string": b""}, receive, send)
    assert engine.cancelled == 1
    server = spans()["POST /predict"]
    assert server.attributes["http.response.status_code"] == log_lines[-1]["status"] == 499
    assert server.status.status_code is StatusCode.UNSET
    assert not server.events


async def test_nothing_secret_and_nothing_of_the_image_is_traced(client, spans, jpeg):
    headers = {"X-API-Key": "my-key", "Authorization": "Bearer my-key", "Cookie": "my-key"}
    files = {"image": ("my-name.jpg", jpeg)}
    await client.post("/predict?my-query=1", files=files, headers=headers)
    await client.post("/predict", files=files, headers=headers)
    assert "my-" not in "".join(span.to_json() for span in spans().values())


async def test_the_last_spans_are_sent_at_the_end(client, app, exported):
    async with app.router.lifespan_context(app):
        await client.get("/models")
    assert [span.name for span in exported.get_finished_spans()] == ["GET /models"]


class Collector(http.server.BaseHTTPRequestHandler):
    """Remembers what it is sent."""

    received: list[tuple[str, ExportTraceServiceRequest]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.received.append((self.path, ExportTraceServiceRequest.FromString(body)))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Collector]]:
    Collector.received = []
    with http.server.HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.02])
        thread.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield Collector
        server.shutdown()
        thread.join()


async def ask_once(engine) -> None:
    """One request to an app that traces as the OTEL_* variables say, from its start to its end."""
    app = create_app(Settings(traces=True), engine)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        assert (await client.get("/healthz")).status_code == 200


@pytest.mark.parametrize("given", [None, "another"])
async def test_a_collector_gets_them_over_otlp(engine, collector, monkeypatch, given):
    if given:
        monkeypatch.setenv("OTEL_SERVICE_NAME", given)
    await ask_once(engine)
    ((path, request),) = collector.received
    assert path == "/v1/traces"
    (group,) = request.resource_spans
    resource = {attribute.key: attribute.value.string_value for attribute in group.resource.attributes}
    assert resource["service.name"] == (given or "vit-attention")
    assert [span.name for span in group.scope_spans[0].spans] == ["GET /healthz"]


@pytest.mark.parametrize("variable", ["OTEL_SDK_DISABLED", "OTEL_TRACES_SAMPLER"])
async def test_the_standard_variables_turn_it_off(engine, collector, monkeypatch, variable):
    monkeypatch.setenv(variable, {"OTEL_SDK_DISABLED": "true"}.get(variable, "always_off"))
    await ask_once(engine)
    assert not collector.received


@pytest.mark.parametrize("how", ["is gone", "never answers"])
async def test_no_collector_holds_up_requests_or_the_end(engine, monkeypatch, how):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
        if how == "is gone":
            listener.close()
        began = time.monotonic()
        await ask_once(engine)
        assert time.monotonic() - began < 5


async def test_nothing_is_traced_by_default_whatever_this_process_traces(engine, monkeypatch):
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", lambda: provider)
    monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
    app = create_app(Settings(), engine)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        assert (await client.get("/models")).status_code == 200
    assert not exporter.get_finished_spans()
    assert app.state.tracer_provider is None


def test_without_the_extra_the_remedy_is_told(engine, monkeypatch):
    monkeypatch.delitem(sys.modules, "service.api.traces", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ServiceError, match=r"pip install 'vit-attention-service\[otel\]'"):
        create_app(Settings(traces=True), engine)
