"""An engine that answers at once and remembers what it was asked, and apps around it."""

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import structlog
import structlog.testing
import torch
from fastapi import FastAPI
from PIL import Image

from service.api.app import create_app
from service.engine.budget import Budget
from service.engine.forward import TorchForward
from service.engine.runner import LoadedModel
from service.errors import NotReady, QueueFull, UnknownModel
from service.metrics import Metrics
from service.models.spec import Architecture
from service.settings import Settings
from service.stages import Stages
from service.store.manifest import Manifest
from service.types import BlocksAnswer, Box, Capture, Label, Prediction, Preprocess, RolloutAnswer
from tests.api.watched_server import WatchedServer, watched_server


class FakeEngine:
    """Has Engine's surface. `raises` is raised by every question; `gate` holds them up while it is clear.

    full: whether `check` refuses.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.models = {"tiny": tiny_model("tiny", 7), "other": tiny_model("other", 3)}
        self.batcher: list[object] = []
        self.alive = True
        self.not_ready: str | None = None
        self.asked: list[dict[str, Any]] = []
        self.raises: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.cancelled = 0
        self.full = False
        self.bytes = Budget(1_000_000, "bytes", lambda: 2.1)
        self.budgets = {"bytes": self.bytes}
        self.life: list[str] = []

    def start(self) -> None:
        self.life.append("started")

    async def close(self) -> None:
        self.life.append("closed")

    def model(self, name: str | None) -> LoadedModel:
        if self.not_ready:
            raise NotReady(f"Not ready: {self.not_ready}.", retry_after=0.2)
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise UnknownModel(f"No model named {name!r} is loaded.")
        return self.models[name]

    def device_memory(self) -> dict[str, int]:
        return {}

    def check(self, timeout_s: float) -> None:
        if self.full:
            raise QueueFull("Full.", retry_after=2.1)

    def explains(self, model: LoadedModel) -> list[str]:
        return ["rollout", "blocks"]

    async def in_pool(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return await asyncio.to_thread(function, *args, **kwargs)

    async def predict(
        self, data: bytes, model: LoadedModel, top_k: int, timeout_s: float, stages: Stages, **options: Any
    ) -> Prediction:
        self.asked.append(
            {"data": data, "model": model.manifest.name, "top_k": top_k, "timeout_s": timeout_s, **options}
        )
        stages.add("decode", 0.002)
        stages.add("model", 0.01)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.raises:
            raise self.raises
        labels = [Label(i, name, 0.5**i) for i, name in enumerate(model.manifest.labels[:top_k])]
        return Prediction(model.manifest.name, 40, 30, Box(5, 0, 35, 30), labels)

    async def rollout(self, *args: Any, overlay: str, **options: Any) -> RolloutAnswer:
        prediction = await self.predict(*args, overlay=overlay, **options)
        grid = np.arange(6, dtype=np.float32).reshape(2, 3)
        return RolloutAnswer(prediction, grid, png("L"), None if overlay == "none" else png("RGB"))

    async def blocks(self, *args: Any, **options: Any) -> BlocksAnswer:
        prediction = await self.predict(*args, **options)
        grids = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
        return BlocksAnswer(prediction, grids, png("RGB"), 4, (30, 40), 1.0)


def tiny_model(name: str, classes: int) -> LoadedModel:
    manifest = Manifest(
        name=name,
        architecture=Architecture((32, 48), 16, 8, 4, 2, 16, classes),
        preprocessing=Preprocess((32, 48), (32, 48), "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        labels=[f"class {i}, \N{CAT FACE}\x7f" for i in range(classes)],
        digest="sha256:" + "0" * 64,
        source="nowhere",
    )
    return LoadedModel(
        manifest,
        TorchForward(torch.nn.Identity(), "fp32"),
        frozenset(Capture),
        "cpu",
        "fp32",
    )


def png(mode: str) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (40, 30)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def settings() -> Settings:
    return Settings(max_body_bytes=200_000, timeout_s=5)


@pytest.fixture
def engine(settings: Settings) -> FakeEngine:
    return FakeEngine(settings)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def app(settings: Settings, engine: FakeEngine, metrics: Metrics) -> FastAPI:
    return create_app(settings, engine, metrics)


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield client


@pytest.fixture
def jpeg() -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def log_lines() -> Iterator[list[Any]]:
    """What the app logs, instead of printing it."""
    with structlog.testing.capture_logs() as lines:
        yield lines


@pytest.fixture(scope="module")
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WatchedServer]:
    """A server process for the tests of one file, with its SETTINGS."""
    settings = getattr(request.module, "SETTINGS", {})
    with watched_server(tmp_path_factory.mktemp("server"), **settings) as server:
        yield server


@pytest.fixture
def unharmed(server: WatchedServer) -> Iterator[None]:
    """What a test against that server ends with."""
    server.watch_anew()
    yield
    server.assert_unharmed()
