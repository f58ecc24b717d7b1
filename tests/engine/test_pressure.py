"""Overload, cancellation, deadlines and stalls: an engine whose device computes when the test lets it."""

import asyncio
import io
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from service.engine.engine import Engine
from service.errors import DeadlineExceeded, NotReady, QueueFull, ServiceError
from service.settings import Settings
from service.stages import Stages
from service.types import Prediction

PENDING_S = 600.0


def picture(width: int = 53, height: int = 37) -> bytes:
    """A random JPEG."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


class Pressed:
    """An engine with one pool thread; its gate, and what it dropped."""

    def __init__(self, store: Path, gate: Any, **changes: object) -> None:
        defaults = {"model_store": store, "model": "tiny", "device": "cpu", "precision": "fp32", "threads": 1}
        self.gate = gate
        self.dropped: list[str] = []
        self.engine = Engine(
            Settings(**{**defaults, **changes}), on_drop=self.dropped.append, runner=gate.runner()
        )

    def ask(self, timeout_s: float = PENDING_S, data: bytes | None = None) -> "asyncio.Task[Prediction]":
        engine = self.engine
        return asyncio.create_task(
            engine.predict(data or picture(), engine.model(None), 1, timeout_s, Stages())
        )

    async def busy(self) -> "asyncio.Task[Prediction]":
        """Shuts the gate; returns a request that is in the batch behind it."""
        self.gate.open.clear()
        self.gate.entered.clear()
        request = self.ask()
        await until(self.gate.entered.is_set)
        return request

    def assert_nothing_is_left(self) -> None:
        assert self.engine.accepted == 0
        assert {name: budget.held for name, budget in self.engine.budgets.items()} == {
            "requests": 0,
            "bytes": 0,
            "pixels": 0,
        }
        assert len(self.engine.batcher) == 0
        assert self.engine.batcher._arriving == 0


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


@contextmanager
def held_up(pool: Executor) -> Iterator[None]:
    """Keeps the one thread of a pool from doing anything inside the with block."""
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        release.wait(60)

    pool.submit(hold)
    held.wait(10)
    try:
        yield
    finally:
        release.set()


@asynccontextmanager
async def started(pressed: Pressed) -> AsyncIterator[Pressed]:
    pressed.engine.start()
    await pressed.engine.wait_ready()
    try:
        yield pressed
    finally:
        pressed.gate.open.set()
        await pressed.engine.close()


@pytest.fixture
async def pressed(tiny_store: Path, gate: Any) -> AsyncIterator[Pressed]:
    async with started(Pressed(tiny_store, gate)) as pressed:
        yield pressed


class TestAdmission:
    async def test_a_wait_longer_than_the_request_allows_is_refused_at_once(self, pressed: Pressed) -> None:
        requests = [await pressed.busy(), *(pressed.ask() for _ in range(9))]
        await until(lambda: pressed.engine.accepted == 10)
        pressed.engine.worker.seconds_per_image = 0.5
        assert pressed.engine.predicted_wait_s == 5.0
        with pytest.raises(
            QueueFull, match=r"10 requests are ahead.* 5\.0 s; this one allows 6\.0 s"
        ) as told:
            pressed.engine.check(6.0)
        assert told.value.retry_after == pytest.approx(0.2)
        pressed.engine.check(6.5)
        with pytest.raises(QueueFull):
            await pressed.ask(6.0)
        pressed.gate.open.set()
        await asyncio.gather(*requests)
        pressed.assert_nothing_is_left()

    async def test_the_wait_is_that_of_the_slower_stage(self, pressed: Pressed) -> None:
        request = await pressed.busy()
        pressed.engine.worker.seconds_per_image = 0.5
        pressed.engine._pool_seconds = 2.0
        assert pressed.engine.predicted_wait_s == 2.0
        pressed.gate.open.set()
        await request
        assert pressed.engine.predicted_wait_s == 0.0

    async def test_an_idle_service_refuses_nobody(self, pressed: Pressed) -> None:
        pressed.engine.worker.seconds_per_image = 1000.0
        assert await pressed.ask(30.0)

    async def test_a_deadline_that_has_passed_is_told_at_admission(self, pressed: Pressed) -> None:
        with pytest.raises(DeadlineExceeded):
            pressed.engine.check(0.0)
        with pytest.raises(DeadlineExceeded):
            await pressed.ask(-1.0)
        pressed.assert_nothing_is_left()

    async def test_pixels_are_counted_before_they_are_decoded(
        self, tiny_store: Path, gate: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        held_while_decoding = []
        async with started(Pressed(tiny_store, gate, max_queue_pixels=5000)) as pressed:
            engine = pressed.engine
            real = JpegImageFile.load

            def load(image: JpegImageFile) -> Any:
                held_while_decoding.append(engine.pixels.held)
                return real(image)

            monkeypatch.setattr("service.imaging.decode.JpegImageFile.load", load, raising=False)
            await pressed.ask()
            assert held_while_decoding[0] == 53 * 37
            with engine.pixels.hold() as others:
                others.take(4000)
                with pytest.raises(QueueFull, match=r"4000 decoded pixels of 5000 .* 1961 more"):
                    await pressed.ask()
            pressed.assert_nothing_is_left()

    async def test_a_picture_that_is_drawn_over_is_counted_until_its_answer(self, pressed: Pressed) -> None:
        engine, overlays = pressed.engine, ("none", "heatmap")
        pressed.gate.open.clear()
        requests = [
            asyncio.create_task(
                engine.rollout(
                    picture(),
                    engine.model(None),
                    1,
                    PENDING_S,
                    Stages(),
                    head_fusion="mean",
                    discard_ratio=0.0,
                    overlay=overlay,  # type: ignore[arg-type]
                )
            )
            for overlay in overlays
        ]
        await until(lambda: engine.batcher._arriving == 0 and engine.accepted == 2)
        assert engine.pixels.held == 53 * 37
        pressed.gate.open.set()
        await asyncio.gather(*requests)
        pressed.assert_nothing_is_left()

    async def test_only_some_batches_are_decoded_ahead_of_the_device(
        self, tiny_store: Path, gate: Any
    ) -> None:
        async with started(Pressed(tiny_store, gate, max_batch=2)) as pressed:
            first = await pressed.busy()
            requests = [pressed.ask() for _ in range(20)]
            await until(lambda: len(pressed.engine.batcher) == 7)  # 4 batches, less the one on the device
            await asyncio.sleep(0.05)
            assert len(pressed.engine.batcher) == 7
            for request in requests[5:15]:  # some of them decoded, some not
                request.cancel()
            await asyncio.gather(*requests[5:15], return_exceptions=True)
            assert pressed.dropped == ["cancelled"] * 10
            pressed.gate.open.set()
            await asyncio.gather(first, *requests[:5], *requests[15:])
            assert sum(pressed.gate.computed) == 11
            pressed.assert_nothing_is_left()

    async def test_large_pictures_wait_for_each_other_and_nobody_for_them(
        self, pressed: Pressed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("service.engine.engine.LARGE_PIXELS", 53 * 37 - 1)
        with held_up(pressed.engine.large):
            large = [pressed.ask() for _ in range(3)]
            assert await pressed.ask(data=picture(17, 11))
            assert not any(request.done() for request in large)
        await asyncio.gather(*large)
        pressed.assert_nothing_is_left()


class TestCancellation:
    async def test_while_its_image_waits_to_be_decoded(
        self, pressed: Pressed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        decoded: list[bytes] = []
        real = pressed.engine._open

        def opened(data: bytes, *args: Any) -> Any:
            decoded.append(data)
            return real(data, *args)

        monkeypatch.setattr(pressed.engine, "_open", opened)
        with held_up(pressed.engine.pool):
            requests = [pressed.ask() for _ in range(20)]
            await until(lambda: pressed.engine.accepted == 20)
            for request in requests:
                request.cancel()
            await asyncio.gather(*requests, return_exceptions=True)
        assert pressed.dropped == ["cancelled"] * 20
        await pressed.ask()
        assert len(decoded) == 1
        assert pressed.gate.computed == [1]
        pressed.assert_nothing_is_left()

    async def test_while_its_job_waits_for_the_device(self, pressed: Pressed) -> None:
        first = await pressed.busy()
        requests = [pressed.ask() for _ in range(20)]
        await until(lambda: len(pressed.engine.batcher) == 20)
        for request in requests:
            request.cancel()
        await asyncio.gather(*requests, return_exceptions=True)
        assert len(pressed.engine.batcher) == 0  # before the device comes by
        pressed.gate.open.set()
        await first
        assert pressed.dropped == ["cancelled"] * 20
        assert pressed.gate.computed == [1]
        pressed.assert_nothing_is_left()

    async def test_after_its_batch_it_is_not_rendered(
        self, pressed: Pressed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rendered: list[object] = []
        monkeypatch.setattr("service.engine.engine.blocks_answer", lambda *args: rendered.append(args))
        engine = pressed.engine
        pressed.gate.open.clear()
        request = asyncio.create_task(
            engine.blocks(picture(), engine.model(None), 1, PENDING_S, Stages(), layout="row", max_side=0)
        )
        await until(pressed.gate.entered.is_set)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        pressed.gate.open.set()
        await pressed.ask()
        assert pressed.gate.computed == [1, 1]  # it was on the device already
        assert not rendered
        assert not pressed.dropped
        pressed.assert_nothing_is_left()


class TestDeadlines:
    async def test_a_job_whose_deadline_passes_in_the_queue_is_never_computed(self, pressed: Pressed) -> None:
        first = await pressed.busy()
        late = pressed.ask(timeout_s=0.05)
        with pytest.raises(DeadlineExceeded):
            await late
        pressed.gate.open.set()
        await first
        assert pressed.dropped == ["expired"]
        assert pressed.gate.computed == [1]
        pressed.assert_nothing_is_left()

    async def test_what_is_computed_too_late_is_not_rendered(
        self, pressed: Pressed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rendered: list[object] = []
        monkeypatch.setattr("service.engine.engine.blocks_answer", lambda *args: rendered.append(args))
        engine, clock = pressed.engine, pressed.engine.batcher.clock
        pressed.gate.open.clear()
        request = asyncio.create_task(
            engine.blocks(picture(), engine.model(None), 1, PENDING_S, Stages(), layout="row", max_side=0)
        )
        await until(pressed.gate.entered.is_set)
        engine.batcher.clock = lambda: clock() + PENDING_S
        pressed.gate.open.set()
        with pytest.raises(DeadlineExceeded):
            await request
        assert not rendered
        pressed.assert_nothing_is_left()


class TestDevice:
    async def test_a_stalled_device_is_not_ready_until_its_batch_ends(self, pressed: Pressed) -> None:
        engine = pressed.engine
        request, clock = await pressed.busy(), engine.batcher.clock
        assert engine.not_ready is None
        engine.batcher.clock = lambda: clock() + 31
        assert engine.not_ready == "stalled"
        assert engine.alive
        with pytest.raises(NotReady, match="stalled"):
            engine.model(None)
        pressed.gate.open.set()
        await request
        assert engine.not_ready is None
        assert await pressed.ask()

    async def test_a_lost_device_answers_what_waits_and_is_dead(self, pressed: Pressed) -> None:
        requests = [await pressed.busy(), *(pressed.ask() for _ in range(9))]
        await until(lambda: len(pressed.engine.batcher) == 9)
        pressed.gate.fault = lambda jobs: RuntimeError("CUDA error: an illegal memory access was encountered")
        pressed.gate.open.set()
        errors = await asyncio.gather(*requests, return_exceptions=True)
        assert all(isinstance(error, NotReady) for error in errors)
        await until(lambda: not pressed.engine.alive)
        assert pressed.engine.not_ready == "the device thread is dead"
        assert isinstance(pressed.engine.worker.failure, ServiceError)
        pressed.assert_nothing_is_left()

    async def test_closing_does_not_wait_for_a_device_that_never_returns(
        self, tiny_store: Path, gate: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("service.engine.engine.JOIN_S", 0.05)
        async with started(Pressed(tiny_store, gate)) as pressed:
            request = await pressed.busy()
            request.cancel()
            async with asyncio.timeout(10):
                await pressed.engine.close()
            assert pressed.engine.worker.is_alive()


async def test_draining_refuses_new_work_and_answers_what_was_accepted(pressed: Pressed) -> None:
    request = await pressed.busy()
    pressed.engine.drain()
    with pytest.raises(NotReady, match="draining"):
        pressed.engine.model(None)
    pressed.gate.open.set()
    assert await request
