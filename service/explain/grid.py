"""From a row of attention over all tokens to a map over the patches."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from service.types import Trace


def patch_maps(rows: Float[Tensor, "batch map token"], trace: Trace) -> Float[Tensor, "batch map row column"]:
    """Drops the prefix columns and lays the patches out on the grid, in reading order."""
    return rows[..., trace.prefix_tokens :].reshape(*rows.shape[:-1], *trace.grid)
