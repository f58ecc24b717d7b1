"""Attention rollout (Abnar & Zuidema 2020, "Quantifying Attention Flow in Transformers").

    Ahat_l = rownorm(fuse_heads(A_l) + I),   R = Ahat_L ... Ahat_1,   map = R[CLS, patches]

Only the CLS row of the product is wanted, so the row is carried from the last block to the first,
r <- r Ahat_l: the same numbers as the full product at 1/N of the work.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from service.explain.grid import patch_maps
from service.types import Capture, HeadFusion, Trace

Fused = Float[Tensor, "batch block token token"]


@dataclass(frozen=True)
class Rollout:
    """One map an image: how attention flows from the patches to the CLS token through all blocks.

    head_fusion: how a block's heads become one matrix.
    discard_ratio: share of each row's weights, the lowest, set to zero before I is added; in [0, 1).
    """

    head_fusion: HeadFusion = "mean"
    discard_ratio: float = 0.0

    @property
    def needs(self) -> Capture:
        """The N x N matrices of all blocks, fused over heads."""
        return Capture.fused(self.head_fusion)

    def __call__(self, trace: Trace) -> Float[Tensor, "batch 1 row column"]:
        """The rollout of each image of the batch, unscaled, on the patch grid."""
        assert trace.attention is not None
        attention = discard_lowest(trace.attention, self.discard_ratio)
        return patch_maps(cls_row_of_product(attention)[:, None], trace)


def cls_row_of_product(attention: Fused) -> Float[Tensor, "batch token"]:
    """Row 0 of Ahat_L ... Ahat_1, without forming a product of matrices.

    r Ahat = (r / s)(A + I), with s the row sums of A + I; those are at least 1, so nothing is ever
    divided by zero, whatever was discarded.
    """
    row_sums = attention.sum(dim=-1) + 1
    row = attention.new_zeros(attention.shape[0], attention.shape[-1])
    row[:, 0] = 1
    for block in reversed(range(attention.shape[1])):
        scaled = row / row_sums[:, block]
        row = scaled + (scaled[:, None] @ attention[:, block])[:, 0]
    return row


def discard_lowest(attention: Fused, ratio: float) -> Fused:
    """Each row's floor(ratio * N) lowest weights set to zero, its weight on CLS never among them."""
    count = int(ratio * attention.shape[-1])
    if count == 0:
        return attention
    lowest = attention.topk(count, dim=-1, largest=False).indices
    kept = attention.scatter(-1, lowest, 0)
    kept[..., 0] = attention[..., 0]
    return kept
