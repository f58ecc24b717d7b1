"""Overload and hang-ups through real sockets: the app, a real engine, and a device that waits at a gate."""

import asyncio
import contextlib
import io
import socket
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from PIL import Image

from service.api.app import create_app
from service.engine.engine import Engine
from service.metrics import Metrics
from service.settings import Settings

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Served:
    """A server of a real engine, in this process."""

    def __init__(self, store: Path, gate: Any, **changes: object) -> None:
        defaults = {"model_store": store, "model": "tiny", "device": "cpu", "precision": "fp32"}
        settings = Settings(**{**defaults, **changes})
        self.gate = gate
        self.metrics = Metrics()
        self.engine = Engine(
            settings,
            on_batch=self.metrics.observe_batch,
            on_drop=self.metrics.count_drop,
            runner=gate.runner(),
        )
        self.app = create_app(settings, self.engine, self.metrics)
        self.connections: list[Connection] = []

    @contextlib.asynccontextmanager
    async def running(self) -> "AsyncIterator[Served]":
        listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
        self.address = listener.getsockname()
        config = uvicorn.Config(self.app, http="h11", log_config=None, access_log=False, lifespan="on")
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            await until(lambda: server.started)
            await self.engine.wait_ready()
            yield self
        finally:
            self.gate.open.set()
            for _, writer in self.connections:
                await hang_up(writer)
            server.should_exit = True
            await serving

    async def send(self, request: bytes) -> Connection:
        connection = await asyncio.open_connection(*self.address)
        self.connections.append(connection)
        connection[1].write(request)
        return connection

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"vit_attention_{name}", labels) or 0.0


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


def head(path: str, *headers: str, method: str = "POST") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


def ask(path: str = "/predict", *headers: str) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    body = buffer.getvalue()
    return head(path, f"Content-Length: {len(body)}", *headers) + body


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """Reads one whole response: status, headers, body."""
    async with asyncio.timeout(60):
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        headers = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers["content-length"]))
    return int(first.split()[1]), headers, body


@pytest.fixture
async def served(tiny_store: Path, gate: Any) -> AsyncIterator[Served]:
    async with Served(tiny_store, gate, max_queue=2000).running() as served:
        yield served


@pytest.fixture
async def small(tiny_store: Path, gate: Any) -> AsyncIterator[Served]:
    async with Served(tiny_store, gate, max_queue=4, max_queue_bytes=100_000).running() as small:
        yield small


async def fill(served: Served) -> list[Connection]:
    """Shuts the gate and takes every place."""
    served.gate.open.clear()
    waiting = [await served.send(ask()) for _ in range(served.engine.settings.max_queue)]
    await until(lambda: served.engine.accepted == len(waiting))
    return waiting


async def test_a_storm_of_hang_ups_costs_the_device_nothing_and_nobody_else_their_answer(
    served: Served,
) -> None:
    engine, gate = served.engine, served.gate
    reader, _ = await served.send(ask())  # keep-alive and warm
    assert (await answer(reader))[0] == 200
    gate.computed.clear()
    tasks, threads = len(asyncio.all_tasks()), threading.active_count()
    gate.open.clear()
    gate.entered.clear()
    first = await served.send(ask())
    await until(gate.entered.is_set)  # the device is busy: all that comes now waits

    paths = ("/predict", "/attention/rollout?overlay=heatmap", "/attention/blocks")
    stormy, staying = [], [first]
    for index in range(550):
        group = staying if index % 11 == 0 else stormy
        group.append(await served.send(ask(paths[index % 3])))
    await until(lambda: engine.accepted == 551)
    await asyncio.gather(*(hang_up(writer) for _, writer in stormy))
    await until(lambda: engine.accepted == 51)
    assert len(stormy) == 500
    assert len(engine.batcher) <= 50
    gate.open.set()

    answers = [await answer(reader) for reader, _ in staying]
    assert [status for status, _, _ in answers] == [200] * 51
    computed_for_nobody = sum(gate.computed) - 51
    assert computed_for_nobody == 0
    assert served.count("jobs_dropped_total", reason="cancelled") == 500
    assert served.count("cancellations_total") == 500
    for _, writer in staying:
        await hang_up(writer)
    assert engine.accepted == 0
    assert {budget.held for budget in engine.budgets.values()} == {0}
    assert len(engine.batcher) == 0
    assert engine.batcher._arriving == 0
    await until(lambda: len(asyncio.all_tasks()) <= tasks)
    assert threading.active_count() <= threads + engine.threads  # the pool starts them when it needs them


async def test_a_full_house_refuses_before_it_reads_the_body(small: Served) -> None:
    waiting = await fill(small)
    reader, _ = await small.send(head("/predict", "Content-Length: 5000000"))  # and never a byte of it
    status, headers, body = await answer(reader)
    assert (status, headers["connection"]) == (503, "close")
    assert int(headers["retry-after"]) >= 1
    assert b"urn:vit-attention:problem:queue-full" in body
    assert b"4 places of 4" in body
    for path in ("/healthz", "/readyz", "/metrics", "/models"):
        reader, _ = await small.send(head(path, method="GET"))
        assert (await answer(reader))[0] == 200
    assert small.engine.accepted == 4
    small.gate.open.set()
    assert [(await answer(reader))[0] for reader, _ in waiting] == [200] * 4
    assert small.count("refusals_total", reason="queue-full") == 1


async def test_who_is_refused_with_a_small_body_keeps_the_connection(small: Served) -> None:
    waiting = await fill(small)
    reader, writer = await small.send(ask() * 3)  # pipelined, so that nothing of a body may be left over
    refusals = [await answer(reader) for _ in range(3)]
    assert [(status, headers.get("connection")) for status, headers, _ in refusals] == [(503, None)] * 3
    small.gate.open.set()
    for reader_, _ in waiting:
        await answer(reader_)
    writer.write(ask())
    assert (await answer(reader))[0] == 200


async def test_a_full_house_looks_at_nothing_but_the_route(small: Served) -> None:
    waiting = await fill(small)
    for path, *headers in (
        ("/predict?top_k=-3",),
        ("/attention/rollout", "X-Request-Timeout: soon"),
        ("/attention/blocks", "X-Request-Timeout: -1", "Content-Type: text/plain"),
    ):
        reader, _ = await small.send(ask(path, *headers))
        assert (await answer(reader))[0] == 503
    reader, _ = await small.send(head("/predict", method="GET"))
    assert (await answer(reader))[0] == 405
    reader, _ = await small.send(ask("/attention"))
    assert (await answer(reader))[0] == 404
    for route in ("/predict", "/attention/rollout", "/attention/blocks"):
        assert small.count("requests_total", method="POST", route=route, status="503") == 1
    small.gate.open.set()
    for reader, _ in waiting:
        await answer(reader)
    reader, _ = await small.send(ask("/predict?top_k=-3"))
    assert (await answer(reader))[0] == 422


async def test_a_wait_longer_than_the_request_allows_is_refused(small: Served) -> None:
    small.gate.open.clear()
    small.gate.entered.clear()
    first = await small.send(ask())
    await until(small.gate.entered.is_set)
    small.engine.worker.seconds_per_image = 6.9
    reader, _ = await small.send(ask("/predict", "X-Request-Timeout: 5"))
    status, headers, body = await answer(reader)
    assert (status, headers["retry-after"]) == (503, "3")  # 6.9 s of wait, 4 s of patience
    assert b"take about 6.9 s; this one allows" in body
    small.gate.open.set()
    assert (await answer(first[0]))[0] == 200


async def test_bodies_are_held_against_their_budget_as_they_come(small: Served) -> None:
    budget = small.engine.bytes
    slow = [await small.send(head("/predict", "Content-Length: 90000") + bytes(45_000)) for _ in range(2)]
    await until(lambda: budget.held == 90_000)
    reader, _ = await small.send(head("/predict", "Content-Length: 20000") + bytes(20_000))
    status, _, body = await answer(reader)
    assert status == 503
    assert b"90000 bytes of 100000 at most, and 20000 more do not fit" in body
    assert small.engine.accepted == 0  # who has not sent all takes no place
    for _, writer in slow:
        await hang_up(writer)
    await until(lambda: budget.held == 0)


async def test_numbers_that_are_not_finite_never_reach_the_json(small: Served) -> None:
    for path in ("/predict", "/attention/rollout?grid=true", "/attention/blocks?grids=true"):
        small.gate.spoil = True
        reader, _ = await small.send(ask(path))
        status, _, body = await answer(reader)
        assert status == 500
        assert b"no finite numbers for this image" in body
        assert b"NaN" not in body
        small.gate.spoil = False
        reader, _ = await small.send(ask(path))
        assert (await answer(reader))[0] == 200


async def test_an_image_without_device_memory_is_told_when_to_come_back(small: Served) -> None:
    small.gate.fault = lambda jobs: MemoryError()
    reader, _ = await small.send(ask())
    status, headers, body = await answer(reader)
    assert (status, headers["retry-after"]) == (503, "1")
    assert b"out-of-device-memory" in body


async def test_a_lost_device_answers_what_waits_and_fails_the_health_check(small: Served) -> None:
    waiting = await fill(small)
    small.gate.fault = lambda jobs: RuntimeError("CUDA error: device-side assert triggered")
    small.gate.open.set()
    assert [(await answer(reader))[0] for reader, _ in waiting] == [503] * 4
    for path in ("/healthz", "/readyz"):
        reader, _ = await small.send(head(path, method="GET"))
        status, _, body = await answer(reader)
        assert status == 503
        assert b"device thread is dead" in body


async def test_what_is_held_is_in_the_metrics(small: Served) -> None:
    await fill(small)
    await until(lambda: small.engine.batcher._arriving == 0)  # all are decoded, their pixels let go of
    text = small.metrics.render().decode()
    assert 'vit_attention_held{budget="requests"} 4.0' in text
    assert 'vit_attention_held{budget="pixels"} 0.0' in text
    assert "vit_attention_device_memory_bytes{" not in text  # a CPU
