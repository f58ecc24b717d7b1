"""Ids, headers, the access line, metrics; and hang-ups, keep-alive and pipelining on real sockets."""

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator, Callable

import pytest
import uvicorn

from service.errors import ServiceError

Address = tuple[str, int]


@pytest.mark.parametrize("wanted", ["abc", "A.b_c-1", "x" * 64])
async def test_a_sensible_request_id_is_kept(client, wanted):
    response = await client.get("/healthz", headers={"X-Request-ID": wanted})
    assert response.headers["X-Request-ID"] == wanted


@pytest.mark.parametrize("wanted", ["", "x" * 65, "a b", "a\x1b[2J", '"}', "né".encode()])
async def test_another_is_replaced(client, wanted):
    response = await client.get("/healthz", headers={"X-Request-ID": wanted})
    assert re.fullmatch("[0-9a-f]{32}", response.headers["X-Request-ID"])


@pytest.mark.parametrize("path", ["/healthz", "/nowhere", "/metrics", "/docs", "/predict", "/openapi.json"])
async def test_every_response_has_its_headers(client, path):
    response = await client.get(path)
    assert response.headers["X-Request-ID"]
    assert re.fullmatch(r"total;dur=\d+\.\d", response.headers["Server-Timing"])


async def test_server_timing_has_the_stages(client, jpeg):
    response = await client.post("/attention/blocks", content=jpeg)
    stages = dict(entry.split(";dur=") for entry in response.headers["Server-Timing"].split(", "))
    assert list(stages) == ["decode", "model", "render", "total"]
    assert (stages["decode"], stages["model"]) == ("2.0", "10.0")


async def test_the_access_line(client, jpeg, log_lines):
    await client.post("/predict?model=other", content=jpeg, headers={"X-Request-ID": "me"})
    line = log_lines[-1]
    assert line.pop("ms") >= 0
    assert line == {
        "event": "request",
        "log_level": "info",
        "method": "POST",
        "route": "/predict",
        "path": "/predict",
        "status": 200,
        "request_id": "me",
        "model": "other",
        "image_bytes": len(jpeg),
        "width": 40,
        "height": 30,
        "stages_ms": {"decode": 2.0, "model": 10.0},
    }


async def test_an_unexpected_error_is_logged_once_with_its_traceback(client, engine, jpeg, log_lines):
    engine.raises = RuntimeError("secret")
    await client.post("/predict", content=jpeg)
    assert [(line["event"], line["log_level"]) for line in log_lines] == [
        ("unhandled error", "error"),
        ("request", "info"),
    ]
    assert log_lines[0]["exc_info"]


async def test_a_model_that_fails_is_logged_with_its_cause(client, engine, jpeg, log_lines):
    engine.raises = ServiceError("The model failed on this image.")
    engine.raises.__cause__ = RuntimeError("secret")
    response = await client.post("/predict", content=jpeg)
    assert (response.status_code, response.json()["detail"]) == (500, "The model failed on this image.")
    assert log_lines[0]["exc_info"].__cause__.args == ("secret",)


@pytest.fixture
async def server(app) -> AsyncIterator[Address]:
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="on")
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    yield listener.getsockname()
    server.should_exit = True
    await serving
    listener.close()


def head(path: str, *headers: str, method: str = "POST") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


def ask(path: str, body: bytes) -> bytes:
    return head(path, f"Content-Length: {len(body)}") + body


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def status_of(reader: asyncio.StreamReader) -> int:
    """Reads one whole response; returns its status."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
    length = next(int(line.split(":")[1]) for line in lines if line.startswith("content-length:"))
    await reader.readexactly(length)
    return int(lines[0].split()[1])


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def test_who_hangs_up_while_waiting_is_cancelled(server, engine, metrics, jpeg, log_lines):
    engine.gate.clear()
    _, writer = await asyncio.open_connection(*server)
    other_reader, other_writer = await asyncio.open_connection(*server)
    for connection in (writer, other_writer):
        connection.write(ask("/attention/rollout", jpeg))
    await until(lambda: len(engine.asked) == 2)
    await hang_up(writer)
    await until(lambda: engine.cancelled == 1)
    engine.gate.set()
    assert await status_of(other_reader) == 200
    await hang_up(other_writer)
    assert b"vit_attention_cancellations_total 1.0" in metrics.render()
    assert sorted(line["status"] for line in log_lines if line["event"] == "request") == [200, 499]
    assert engine.cancelled == 1


async def test_a_storm_of_hang_ups_leaves_nothing_behind(server, engine, jpeg):
    engine.gate.clear()
    tasks = len(asyncio.all_tasks())
    writers = []
    for _ in range(100):
        _, writer = await asyncio.open_connection(*server)
        writer.write(ask("/predict", jpeg))
        writers.append(writer)
    await until(lambda: len(engine.asked) == 100)
    await asyncio.gather(*map(hang_up, writers))
    await until(lambda: engine.cancelled == 100)
    await until(lambda: len(asyncio.all_tasks()) == tasks)


async def test_who_hangs_up_in_the_body_is_cancelled_too(server, engine, log_lines):
    _, writer = await asyncio.open_connection(*server)
    writer.write(head("/predict", "Content-Length: 1000") + b"\xff" * 10)
    await writer.drain()
    await asyncio.sleep(0.05)
    await hang_up(writer)
    await until(lambda: bool(log_lines))
    assert [line["status"] for line in log_lines] == [499]
    assert not engine.asked


async def test_a_connection_serves_many_requests(server, engine, jpeg):
    reader, writer = await asyncio.open_connection(*server)
    for path in ("/predict", "/nowhere", "/attention/blocks", "/predict?top_k=0", "/predict"):
        writer.write(ask(path, jpeg))
        assert await status_of(reader) in (200, 404, 422)
    await hang_up(writer)
    assert len(engine.asked) == 3
    assert engine.cancelled == 0


@pytest.mark.parametrize(
    "announced", [("Content-Length: 1000",), ("Content-Length: 1000", "Expect: 100-continue")], ids=len
)
async def test_a_body_that_does_not_come_ends_its_connection_after_the_answer(server, announced):
    reader, writer = await asyncio.open_connection(*server)
    writer.write(head("/nowhere", *announced))
    async with asyncio.timeout(1):
        text = (await reader.readuntil(b"\r\n\r\n")).lower()
    assert text.startswith(b"http/1.1 404")
    assert b"connection: close" in text
    await hang_up(writer)


async def test_pipelined_requests_are_answered_in_turn(server, engine, jpeg):
    reader, writer = await asyncio.open_connection(*server)
    writer.write(ask("/predict", jpeg) * 3 + head("/healthz", method="GET") + ask("/attention/rollout", jpeg))
    assert [await status_of(reader) for _ in range(5)] == [200] * 5
    await hang_up(writer)
    assert engine.cancelled == 0


async def test_an_announced_giant_is_refused_before_it_comes(server):
    reader, writer = await asyncio.open_connection(*server)
    writer.write(head("/predict", "Content-Length: 1000000000"))
    async with asyncio.timeout(1):
        assert await status_of(reader) == 413
    await hang_up(writer)


async def test_an_endless_body_is_answered_and_cut_off(server):
    reader, writer = await asyncio.open_connection(*server)
    writer.write(head("/predict", "Transfer-Encoding: chunked"))

    async def send() -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"2710\r\n" + b"\xff" * 10_000 + b"\r\n")
                await writer.drain()
                await asyncio.sleep(0.001)

    sending = asyncio.create_task(send())
    async with asyncio.timeout(5):
        assert await status_of(reader) == 413
        await sending
    await hang_up(writer)


async def test_who_sends_all_of_a_giant_before_reading_gets_the_answer(server):
    reader, writer = await asyncio.open_connection(*server)
    writer.write(head("/predict", "Content-Length: 30000000"))
    writer.write(b"\xff" * 30_000_000)
    await writer.drain()
    assert await status_of(reader) == 413
    await hang_up(writer)
