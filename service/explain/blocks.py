"""Block maps: what the CLS token looks at in each block, by itself (not accumulated over blocks)."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from service.explain.grid import patch_maps
from service.types import Capture, Trace


@dataclass(frozen=True)
class BlockMaps:
    """One map a block: the CLS row of rownorm(mean over heads + I), patches only."""

    @property
    def needs(self) -> Capture:
        """The CLS row of every block: no N x N matrix."""
        return Capture.CLS_ROWS

    def __call__(self, trace: Trace) -> Float[Tensor, "batch block row column"]:
        """Every block's map for each image of the batch, unscaled, on the patch grid."""
        assert trace.attention is not None
        rows = trace.attention.clone()
        rows[..., 0] += 1  # the CLS row of + I
        return patch_maps(rows / rows.sum(dim=-1, keepdim=True), trace)
