"""The CUDA forward pass on the CPU: staging, buckets and slicing are the same, only nothing is recorded."""

import numpy as np
import pytest
import torch

from service.engine.cuda import CudaForward, bucket
from service.models.spec import Architecture
from service.models.vit import VisionTransformer
from service.types import Capture

ARCH = Architecture((21, 35), 7, width=33, depth=3, heads=3, mlp_width=41, classes=13, prefix_tokens=2)


@pytest.fixture
def model() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(ARCH).eval().requires_grad_(False)


def images(count: int, seed: int) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).normal(size=(count, 3, 21, 35)).astype(np.float32))


def made(model: VisionTransformer) -> CudaForward:
    return CudaForward(model, torch.device("cpu"), torch.float32, "fp32")


@pytest.mark.parametrize("capture", Capture)
def test_padded_batches_give_what_the_model_gives(model: VisionTransformer, capture: Capture) -> None:
    forward = made(model)
    for seed, count in enumerate((5, 1, 7, 3, 5, 8)):  # smaller ones meet what larger ones left behind
        pixels = images(count, seed)
        ours, theirs = forward(pixels, capture), model(torch.from_numpy(np.stack(pixels)), capture)
        torch.testing.assert_close(ours.logits, theirs.logits)
        torch.testing.assert_close(ours.attention, theirs.attention)
        assert (ours.prefix_tokens, ours.grid) == (theirs.prefix_tokens, theirs.grid)


def test_a_graph_is_recorded_once_for_each_capture_and_bucket(model: VisionTransformer) -> None:
    forward = made(model)
    for count in (1, 2, 3, 4, 3):
        forward(images(count, count), Capture.NONE)
    forward(images(3, 0), Capture.CLS_ROWS)
    assert set(forward.recorded) == {
        (Capture.NONE, 1),
        (Capture.NONE, 2),
        (Capture.NONE, 4),
        (Capture.CLS_ROWS, 4),
    }
    assert set(forward.pinned) == {1, 2, 4}


@pytest.mark.parametrize(
    ("max_batch", "sizes"), [(1, [1]), (2, [1, 2]), (5, [1, 2, 4, 8]), (64, [1, 2, 4, 8, 16, 32, 64])]
)
def test_every_bucket_is_warmed_up(model: VisionTransformer, max_batch: int, sizes: list[int]) -> None:
    assert made(model).sizes(max_batch) == sizes
    assert {bucket(count) for count in range(1, max_batch + 1)} == set(sizes)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("capture", Capture)
def test_recorded_graphs_give_what_the_cpu_gives(model: VisionTransformer, capture: Capture) -> None:
    batches = [images(count, seed) for seed, count in enumerate((5, 1, 7, 5))]
    expected = [model(torch.from_numpy(np.stack(batch)), capture) for batch in batches]
    forward = CudaForward(model, torch.device("cuda"), torch.float32, "fp32")
    for batch, wanted in zip(batches, expected, strict=True):
        trace = forward(batch, capture)
        torch.testing.assert_close(trace.logits.cpu(), wanted.logits, atol=1e-4, rtol=0)
        if wanted.attention is not None and trace.attention is not None:
            torch.testing.assert_close(trace.attention.cpu(), wanted.attention, atol=1e-5, rtol=0)
