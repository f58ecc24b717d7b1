"""predict, rollout, blocks: the only place where decoding, batching, explaining and rendering meet."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, ParamSpec, TypeVar

import torch

from service.engine.answers import Layout, Overlay, Seen, blocks_answer, prediction, rollout_answer
from service.engine.batcher import Batcher, deadline_exceeded
from service.engine.budget import Budget, Hold
from service.engine.runner import LoadedModel, Runner
from service.engine.threads import cpu_budget, step_back
from service.engine.worker import BatchObserver, Worker, learned
from service.errors import DeadlineExceeded, NotReady, QueueFull, UnknownModel
from service.explain import catalog
from service.explain.blocks import BlockMaps
from service.explain.rollout import Rollout
from service.imaging.decode import Opened, open_image
from service.imaging.picture import Picture
from service.imaging.preprocess import preprocess
from service.settings import Settings
from service.stages import Stages
from service.store.registry import Registry
from service.types import (
    BlocksAnswer,
    Explainer,
    HeadFusion,
    Job,
    Outcome,
    Pixels,
    Prediction,
    Preprocess,
    RolloutAnswer,
)

P = ParamSpec("P")
R = TypeVar("R")


JOIN_S = 5.0
"""How long closing waits for a device thread that nobody waits for any more."""

PATIENCE = 0.8
"""The share of a request's time that it may be predicted to wait: predictions err, and work is not free."""

LARGE_PIXELS = 8_000_000

BATCHES_AHEAD = 4
"""How many batches of images are decoded before the device has computed the first of them."""

DropReason = Literal["cancelled", "expired"]
DropObserver = Callable[[DropReason], None]


@dataclass(frozen=True)
class Place:
    """A request's place among the accepted ones.

    began, deadline: on the batcher's clock.
    timeout: ends the request at its deadline.
    pixels: those decoded for it and still held.
    """

    began: float
    deadline: float
    timeout: asyncio.Timeout
    pixels: Hold


class Engine:
    """The service without its HTTP: start it, ask it, close it.

    on_batch: told of every batch.
    on_drop: told of every accepted request that was dropped before it was computed.
    on_end: called once the device thread has ended, also when nobody asked it to.
    runner: what computes; by default one on the settings' device.
    """

    def __init__(
        self,
        settings: Settings,
        on_batch: BatchObserver = lambda size, capture, seconds: None,
        on_end: Callable[[], None] = lambda: None,
        on_drop: DropObserver = lambda reason: None,
        runner: Runner | None = None,
    ) -> None:
        self.settings = settings
        self.registry = Registry(settings.model_store)
        threads = settings.threads or cpu_budget()
        self.runner = runner or Runner(settings.device, settings.precision, settings.runtime, threads)
        max_batch = settings.max_batch or (8 if self.runner.device.type == "cpu" else 64)
        self.batcher = Batcher(max_batch, settings.max_wait_ms / 1000, time.monotonic)
        self.worker = Worker(self.runner, self.batcher, self._load, on_batch, on_end)
        self.pool = ThreadPoolExecutor(threads, "image", initializer=step_back)
        self.large = ThreadPoolExecutor(1, "large image", initializer=step_back)
        self.threads = threads
        self.requests = Budget(settings.max_queue, "places", lambda: self.predicted_wait_s)
        self.bytes = Budget(settings.max_queue_bytes, "bytes", lambda: self.predicted_wait_s)
        self.pixels = Budget(settings.max_queue_pixels, "decoded pixels", lambda: self.predicted_wait_s)
        self.budgets = {"requests": self.requests, "bytes": self.bytes, "pixels": self.pixels}
        self.ahead = asyncio.Semaphore(BATCHES_AHEAD * max_batch)
        self.on_drop = on_drop
        self._pool_seconds = 0.0
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False

    # -- life ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begins to load and warm up on the device thread; returns at once."""
        self.worker.start()

    async def wait_ready(self) -> None:
        """Returns once requests are served; raises what loading the models raised."""
        await asyncio.wrap_future(self.worker.loaded)
        if self.worker.failure is not None:
            raise self.worker.failure

    def drain(self) -> None:
        """Refuses new work from now on; what was accepted is answered. From any thread, or a signal."""
        self._draining = True

    async def close(self) -> None:
        """Refuses new work, answers everything accepted, then stops."""
        self.drain()
        await self._idle.wait()
        self.batcher.close()
        if self.worker.is_alive():
            await asyncio.to_thread(self.worker.join, JOIN_S)
        self.pool.shutdown()
        self.large.shutdown()

    @property
    def alive(self) -> bool:
        """False once the device thread is dead."""
        return self.worker.failure is None

    @property
    def not_ready(self) -> str | None:
        """None when requests are served, else why they are not."""
        if not self.alive:
            return "the device thread is dead"
        if self._draining:
            return "draining"
        if not self.worker.loaded.done():
            return "loading"
        return "stalled" if self.worker.busy_s > self.settings.stall_s else None

    @property
    def accepted(self) -> int:
        """Requests that are accepted and not yet answered."""
        return self.requests.held

    @property
    def predicted_wait_s(self) -> float:
        """Seconds until all that is accepted now is answered, at the pace of the slower stage."""
        return self.accepted * max(self.worker.seconds_per_image, self._pool_seconds / self.threads)

    def device_memory(self) -> Mapping[str, int]:
        """Bytes of device memory by what became of them; empty on a CPU."""
        if self.runner.device.type != "cuda":
            return {}
        return {
            "allocated": torch.cuda.memory_allocated(self.runner.device),
            "reserved": torch.cuda.memory_reserved(self.runner.device),
        }

    def _load(self) -> dict[str, LoadedModel]:
        models = {}
        for name in self.settings.model:
            stored = self.registry.open_path(Path(name)) if is_path(name) else self.registry.open(name)
            model = self.runner.load(*self.registry.load(stored))
            self.runner.warm_up(model, self.batcher.max_batch)
            models[model.manifest.name] = model
        return models

    # -- questions -----------------------------------------------------------------------------------

    @property
    def models(self) -> Mapping[str, LoadedModel]:
        """The loaded models by name, the default one first; empty while loading."""
        return self.worker.models

    def model(self, name: str | None) -> LoadedModel:
        """The model of that name, or the default one. Raises UnknownModel, or NotReady."""
        if self.not_ready:
            raise NotReady(f"The service is not ready: {self.not_ready}.", retry_after=1)
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise UnknownModel(f"No model named {name!r} is loaded; there is {', '.join(self.models)}.")
        return self.models[name]

    def explains(self, model: LoadedModel) -> list[str]:
        """The names of the explanations that the model's family can give."""
        return catalog.offered(model.captures)

    async def predict(
        self, data: bytes, model: LoadedModel, top_k: int, timeout_s: float, stages: Stages
    ) -> Prediction:
        """The labels of an image given as bytes.

        Raises the ServiceErrors of decoding, of the queue and of the deadline, as all three do.
        """
        async with self._accepted(timeout_s, stages) as place:
            seen = await self._see(data, model, None, place, stages)
            return prediction(model, seen, top_k)

    async def rollout(
        self,
        data: bytes,
        model: LoadedModel,
        top_k: int,
        timeout_s: float,
        stages: Stages,
        *,
        head_fusion: HeadFusion,
        discard_ratio: float,
        overlay: Overlay,
    ) -> RolloutAnswer:
        """The labels, the rollout's mask and, where asked for, the picture under it."""
        async with self._accepted(timeout_s, stages) as place:
            explainer = Rollout(head_fusion, discard_ratio)
            draw_over = overlay != "none"
            seen = await self._see(data, model, explainer, place, stages, keep_image=draw_over)
            pool = self._pool_for(seen.width * seen.height)
            return await run_in(pool, self._drawn, data, model, seen, top_k, overlay, stages)

    async def blocks(
        self,
        data: bytes,
        model: LoadedModel,
        top_k: int,
        timeout_s: float,
        stages: Stages,
        *,
        layout: Layout,
        max_side: int,
    ) -> BlocksAnswer:
        """The labels and the canvas of every block's map."""
        async with self._accepted(timeout_s, stages) as place:
            seen = await self._see(data, model, BlockMaps(), place, stages)
            budget = self.settings.max_canvas_pixels
            return await self.in_pool(blocks_answer, model, seen, top_k, layout, max_side, budget, stages)

    # -- the way of a request ------------------------------------------------------------------------

    def check(self, timeout_s: float) -> None:
        """Raises at once what a request with that much time left would meet: QueueFull or DeadlineExceeded.

        Ask before a request's body is read: work for an answer that can't come in time is work lost.
        """
        if timeout_s <= 0:
            raise deadline_exceeded(0.0)
        self.requests.check(1)
        wait_s = self.predicted_wait_s
        if wait_s > timeout_s * PATIENCE:
            raise QueueFull(
                f"{self.accepted} requests are ahead, which take about {wait_s:.1f} s; this one allows "
                f"{timeout_s:.1f} s. Allow more with X-Request-Timeout, or try again later.",
                retry_after=wait_s - timeout_s * PATIENCE,
            )

    @asynccontextmanager
    async def _accepted(self, timeout_s: float, stages: Stages) -> AsyncIterator[Place]:
        """Holds one of the queue's places until the answer is ready."""
        self.check(timeout_s)
        began = self.batcher.clock()
        self._idle.clear()
        try:
            with self.requests.hold() as places, self.pixels.hold() as pixels:
                places.take(1)
                async with asyncio.timeout(timeout_s) as timeout:
                    yield Place(began, began + timeout_s, timeout, pixels)
                in_pool = stages.seconds.get("decode", 0.0) + stages.seconds.get("render", 0.0)
                self._pool_seconds = learned(self._pool_seconds, in_pool)
        except TimeoutError:
            raise deadline_exceeded(self.batcher.clock() - began) from None
        finally:
            if not self.accepted:
                self._idle.set()

    async def _see(
        self,
        data: bytes,
        model: LoadedModel,
        explainer: Explainer | None,
        place: Place,
        stages: Stages,
        *,
        keep_image: bool = False,
    ) -> Seen:
        """Decodes, queues and waits for what the device makes of it."""
        if explainer is not None:
            catalog.require(explainer, model.captures, model.manifest.name)
        future: Future[Outcome] = Future()
        try:
            async with AsyncExitStack() as turn:
                how = model.manifest.preprocessing
                with self.batcher.arriving():
                    opened = await self.in_pool(self._open, data, how, keep_image, stages)
                    await self._take_turn(turn, opened, stages)
                    pool = self._pool_for(opened.pixels)
                    picture, pixels = await run_in(pool, prepare, opened, how, place, stages)
                    name, submitted = model.manifest.name, self.batcher.clock()
                    self.batcher.submit(Job(name, pixels, explainer, submitted, place.deadline, future))
                width, height = picture.width, picture.height
                kept = picture if keep_image and not is_large(width * height) else None
                if kept is None:
                    place.pixels.give_back()
                del opened, picture, pixels  # only what is needed afterwards is held while the job waits
                outcome = await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if future.cancel():
                self.on_drop("expired" if place.timeout.expired() else "cancelled")
            raise
        except DeadlineExceeded:
            self.on_drop("expired")
            raise
        stages.add("queue", outcome.queue_s)
        stages.add("model", outcome.model_s)
        if explainer is not None:
            stages.add("explain", outcome.explain_s)
        if self.batcher.clock() >= place.deadline:
            raise deadline_exceeded(self.batcher.clock() - place.began)
        return Seen(width, height, kept, outcome)

    async def _take_turn(self, turn: AsyncExitStack, opened: Opened, stages: Stages) -> None:
        """Waits, undecoded, until the device has nearly come to this image; its turn is over with `turn`.

        Large pictures, which wait for each other, would keep the turns of all others.
        """
        if not is_large(opened.pixels):
            with stages.measure("queue"):
                await turn.enter_async_context(self.ahead)

    def _open(self, data: bytes, how: Preprocess, keep_image: bool, stages: Stages) -> Opened:
        """The image's header. A draft will do for the model, and a large image is not kept."""
        with stages.measure("decode"):
            opened = open_image(data, self.settings.max_image_pixels)
            if not keep_image or is_large(opened.pixels):
                opened.draft(how.resized_side)
            return opened

    def _drawn(
        self, data: bytes, model: LoadedModel, seen: Seen, top_k: int, overlay: Overlay, stages: Stages
    ) -> RolloutAnswer:
        """A rollout's pictures. A large image to draw over was let go of meanwhile, and is decoded again."""
        if overlay != "none" and seen.picture is None:
            with stages.measure("decode"):
                picture = open_image(data, self.settings.max_image_pixels).decode()
            seen = replace(seen, picture=picture)
        return rollout_answer(model, seen, top_k, overlay, stages)

    def _pool_for(self, pixels: int) -> Executor:
        """Where so many pixels are decoded or drawn: large pictures go one at a time, and stop no others."""
        return self.large if is_large(pixels) else self.pool

    async def in_pool(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs CPU work beside the event loop, on the pool that decodes and renders."""
        return await run_in(self.pool, function, *args, **kwargs)


async def run_in(executor: Executor, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """What the function returns, called on a thread of the executor."""
    return await asyncio.wrap_future(executor.submit(function, *args, **kwargs))


def prepare(opened: Opened, how: Preprocess, place: Place, stages: Stages) -> tuple[Picture, Pixels]:
    """Decodes an image, whose pixels are counted first, and makes of it what the model takes."""
    with stages.measure("decode"):
        place.pixels.take(opened.pixels)
        picture = opened.decode()
        return picture, preprocess(picture, how)


def is_large(pixels: int) -> bool:
    """Whether a picture of so many takes tens of megabytes and more while it is decoded or drawn."""
    return pixels > LARGE_PIXELS


def is_path(model: str) -> bool:
    """Whether a --model value is meant as a folder rather than as a name in the store."""
    return "/" in model or Path(model).is_dir()
