"""The engine with a real model: batches that are batches, answers that don't depend on them."""

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from service.engine.engine import Engine
from service.errors import (
    BadImage,
    DeadlineExceeded,
    NotReady,
    QueueFull,
    ServiceError,
    StoreError,
    UnknownModel,
)
from service.settings import Settings
from service.stages import Stages
from service.types import Capture, Job, Prediction, RolloutAnswer


def picture(seed: int, width: int = 53, height: int = 37) -> bytes:
    """A random PNG."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def settings(store: Path, **changes: object) -> Settings:
    defaults = {"model_store": store, "model": ["tiny", "crop"], "device": "cpu", "precision": "fp32"}
    return Settings(**{**defaults, **changes})


class Batches(list[tuple[int, Capture]]):
    """Collects what the engine tells of its batches."""

    def __call__(self, size: int, capture: Capture, seconds: float) -> None:
        assert seconds > 0
        self.append((size, capture))


@pytest.fixture
def batches() -> Batches:
    return Batches()


@pytest.fixture
async def engine(tiny_store: Path, batches: Batches) -> AsyncIterator[Engine]:
    engine = Engine(settings(tiny_store), on_batch=batches)
    engine.start()
    await engine.wait_ready()
    yield engine
    await engine.close()


async def predict(engine: Engine, seed: int, timeout_s: float = 30.0, model: str | None = None) -> Prediction:
    return await engine.predict(picture(seed), engine.model(model), 5, timeout_s, Stages())


async def rollout(engine: Engine, seed: int, discard_ratio: float = 0.0) -> RolloutAnswer:
    return await engine.rollout(
        picture(seed),
        engine.model("tiny"),
        5,
        30.0,
        Stages(),
        head_fusion="mean",
        discard_ratio=discard_ratio,
        overlay="none",
    )


async def test_32_concurrent_requests_share_forwards_and_keep_their_answers(
    engine: Engine, batches: Batches
) -> None:
    alone = [await rollout(engine, seed, seed % 3 / 4) for seed in range(32)]
    assert batches == [(1, Capture.FUSED_MEAN)] * 32
    batches.clear()
    together = await asyncio.gather(*(rollout(engine, seed, seed % 3 / 4) for seed in range(32)))
    assert sum(size for size, _ in batches) == 32
    assert len(batches) <= 12
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(other.grid, one.grid, atol=1e-6)
        scores = [[label.score for label in answer.prediction.labels] for answer in (one, other)]
        np.testing.assert_allclose(scores[1], scores[0], atol=1e-4)


async def test_requests_of_different_kinds_do_not_mix(engine: Engine, batches: Batches) -> None:
    answers = await asyncio.gather(
        *(predict(engine, seed) for seed in range(4)),
        *(predict(engine, seed, model="crop") for seed in range(4)),
        *(rollout(engine, seed) for seed in range(4)),
    )
    assert [answer.model for answer in answers[:8]] == ["tiny"] * 4 + ["crop"] * 4
    assert {capture for _, capture in batches} == {Capture.NONE, Capture.FUSED_MEAN}
    assert 3 <= len(batches) < 12


async def test_stages_add_up_to_the_request(engine: Engine) -> None:
    stages = Stages()
    await engine.blocks(picture(0), engine.model(None), 5, 30.0, stages, layout="row", max_side=0)
    assert list(stages.seconds) == ["decode", "queue", "model", "explain", "render"]
    assert sum(stages.seconds.values()) <= stages.total


async def test_a_bad_image_fails_alone(engine: Engine) -> None:
    good = [predict(engine, seed) for seed in range(5)]
    bad = engine.predict(b"no image", engine.model(None), 5, 30.0, Stages())
    *answers, error = await asyncio.gather(*good, bad, return_exceptions=True)
    assert isinstance(error, BadImage)
    assert all(isinstance(answer, Prediction) for answer in answers)


async def test_a_forward_that_raises_for_one_image_fails_that_image_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    culprit = picture(99, width=3, height=3)
    real = engine.runner.run

    def run(model: object, jobs: list[Job], started: float) -> object:
        if any(np.ptp(job.pixels) == 0 for job in jobs):
            raise RuntimeError("one image is cursed")
        return real(model, jobs, started)

    monkeypatch.setattr(engine.runner, "run", run)
    flat = io.BytesIO()
    Image.new("RGB", (3, 3), (128, 128, 128)).save(flat, "PNG")
    culprit = engine.predict(flat.getvalue(), engine.model(None), 5, 30.0, Stages())
    error, *answers = await asyncio.gather(
        culprit, *(predict(engine, seed) for seed in range(7)), return_exceptions=True
    )
    assert isinstance(error, ServiceError)
    assert str(error.__cause__) == "one image is cursed"
    assert all(isinstance(answer, Prediction) for answer in answers)
    assert engine.alive


async def test_a_deadline_that_passes_is_an_error_and_frees_the_place(engine: Engine) -> None:
    with pytest.raises(DeadlineExceeded, match="X-Request-Timeout"):
        await predict(engine, 0, timeout_s=1e-6)
    assert engine.accepted == 0
    assert (await predict(engine, 0)).model == "tiny"


async def queued(engine: Engine) -> None:
    """Returns once a job waits for the device."""
    while not len(engine.batcher):  # noqa: ASYNC110 (nothing announces a job that waits)
        await asyncio.sleep(0.001)


async def test_a_request_that_is_cancelled_is_not_computed(engine: Engine, batches: Batches) -> None:
    with engine.batcher.arriving():  # holds small batches back for max_wait_ms
        engine.batcher.max_wait_s = 60
        request = asyncio.create_task(predict(engine, 0))
        await asyncio.wait_for(queued(engine), 10)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
    await predict(engine, 1)
    assert sum(size for size, _ in batches) == 1
    assert engine.accepted == 0


async def test_a_full_queue_refuses_with_a_time_to_come_back(tiny_store: Path) -> None:
    engine = Engine(settings(tiny_store, max_queue=3))
    engine.start()
    await engine.wait_ready()
    await predict(engine, 0)
    answers = await asyncio.gather(*(predict(engine, seed) for seed in range(8)), return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, QueueFull)]
    assert len(refused) == 5
    assert all(error.retry_after is not None and error.retry_after > 0 for error in refused)
    await engine.close()


async def test_closing_answers_what_was_accepted_and_refuses_the_rest(tiny_store: Path) -> None:
    engine = Engine(settings(tiny_store))
    with pytest.raises(NotReady, match="loading"):
        engine.model(None)
    engine.start()
    await engine.wait_ready()
    accepted = [asyncio.create_task(predict(engine, seed)) for seed in range(9)]
    await asyncio.sleep(0)
    await engine.close()
    assert len(await asyncio.gather(*accepted)) == 9
    assert engine.not_ready == "draining"
    with pytest.raises(NotReady, match="draining"):
        engine.model(None)
    assert not engine.worker.is_alive()


async def test_a_model_that_is_not_loaded_is_named_with_those_that_are(engine: Engine) -> None:
    with pytest.raises(UnknownModel, match=r"'huge'.*tiny, crop"):
        engine.model("huge")


async def test_a_model_that_cannot_be_loaded_ends_the_engine_with_its_error(tiny_store: Path) -> None:
    ended = []
    engine = Engine(settings(tiny_store, model=["absent"]), on_end=lambda: ended.append(True))
    engine.start()
    with pytest.raises(StoreError, match="absent"):
        await engine.wait_ready()
    engine.worker.join(10)
    assert ended == [True]
    assert not engine.alive
    await engine.close()


async def test_a_device_thread_that_dies_fails_what_waits(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(jobs: list[Job]) -> None:
        jobs[0].future.set_exception(ServiceError("the last words"))
        raise RuntimeError("device lost")

    monkeypatch.setattr(engine.worker, "compute", die)
    monkeypatch.setattr(engine.batcher, "max_batch", 1)
    answers = await asyncio.gather(*(predict(engine, seed) for seed in range(5)), return_exceptions=True)
    assert all(isinstance(answer, ServiceError) for answer in answers)
    assert not engine.alive
    assert engine.not_ready == "the device thread is dead"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
async def test_cuda_agrees_with_the_cpu(tiny_store: Path, engine: Engine) -> None:
    cuda = Engine(settings(tiny_store, device="cuda"))
    cuda.start()
    await cuda.wait_ready()
    np.testing.assert_allclose((await rollout(cuda, 0)).grid, (await rollout(engine, 0)).grid, atol=1e-4)
    await cuda.close()
