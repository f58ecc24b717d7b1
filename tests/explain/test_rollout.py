"""Rollout against the full product of matrices, and against the mistakes others make."""

import numpy as np
import pytest
import torch

from service.explain.rollout import Rollout, discard_lowest
from service.types import Capture, HeadFusion, Trace

B, L, N, PREFIX, GRID = 3, 5, 17, 2, (3, 5)


def random_attention(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).mul(3).softmax(-1)


def trace_of(attention: torch.Tensor) -> Trace:
    return Trace(torch.zeros(len(attention), 2), attention, PREFIX, GRID)


def discarded(row: np.ndarray, ratio: float) -> np.ndarray:
    """One row by hand: its floor(ratio * N) smallest set to zero, column 0 left alone."""
    row = row.copy()
    for column in np.argsort(row, kind="stable")[: int(ratio * len(row))]:
        if column != 0:
            row[column] = 0
    return row


def product(attention: np.ndarray, ratio: float) -> np.ndarray:
    """The CLS row of Ahat_L ... Ahat_1 for one image (L, N, N), as N x N matrix products."""
    result = np.eye(attention.shape[-1])
    for block in attention:
        block = np.array([discarded(row, ratio) for row in block]) + np.eye(len(block))
        result = (block / block.sum(1, keepdims=True)) @ result
    return result[0]


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.9, 0.99])
def test_the_row_form_equals_the_product_of_matrices(ratio: float) -> None:
    attention = random_attention(B, L, N, N)
    maps = Rollout("mean", ratio)(trace_of(attention))
    assert maps.shape == (B, 1, 3, 5)
    for i in range(B):
        expected = product(attention[i].double().numpy(), ratio)[PREFIX:].reshape(GRID)
        np.testing.assert_allclose(maps[i, 0], expected, atol=1e-6)


@pytest.mark.parametrize("fusion", ["max", "min"])
def test_rows_that_do_not_sum_to_one_are_normalised(fusion: HeadFusion) -> None:
    heads = random_attention(B, L, 3, N, N)
    fused = heads.amax(2) if fusion == "max" else heads.amin(2)
    maps = Rollout(fusion)(trace_of(fused))
    for i in range(B):
        expected = product(fused[i].double().numpy(), 0)[PREFIX:].reshape(GRID)
        np.testing.assert_allclose(maps[i, 0], expected, atol=1e-6)


def test_each_image_of_a_batch_is_pruned_by_itself() -> None:
    attention = random_attention(B, L, N, N)
    alone = [Rollout("mean", 0.5)(trace_of(attention[i : i + 1]))[0] for i in range(B)]
    torch.testing.assert_close(Rollout("mean", 0.5)(trace_of(attention)), torch.stack(alone))


def test_the_cls_column_is_never_discarded() -> None:
    attention = random_attention(1, 1, N, N)
    attention[..., 0] = 0.001  # the lowest of every row
    kept = discard_lowest(attention, 0.99)
    assert (kept[..., 0] == 0.001).all()
    assert (kept == 0).sum(-1).unique().tolist() == [int(0.99 * N) - 1]


def test_a_matrix_that_is_discarded_whole_gives_an_empty_map_and_no_nan() -> None:
    maps = Rollout("min", 0.99)(trace_of(torch.zeros(1, L, N, N)))
    assert maps.abs().sum() == 0


def test_what_was_captured_is_left_as_it_was() -> None:
    attention = random_attention(1, L, N, N)
    before = attention.clone()
    Rollout("mean", 0.7)(trace_of(attention))
    assert torch.equal(attention, before)


@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
def test_it_needs_the_matching_capture(fusion: HeadFusion) -> None:
    assert Rollout(fusion).needs is Capture(f"fused {fusion}")
