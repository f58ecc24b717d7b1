"""Multi-head softmax attention that hands back as much of itself as was asked for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from service.types import Capture

Heads = Float[Tensor, "batch head token channel"]
FUSED = (Capture.FUSED_MEAN, Capture.FUSED_MAX, Capture.FUSED_MIN)


def attend(q: Heads, k: Heads, v: Heads, capture: Capture) -> tuple[Heads, Float[Tensor, "batch ..."] | None]:
    """softmax(q k^T / sqrt(channels)) v, and the part of the softmax that `capture` names, float32.

    The N x N matrix is formed only where it is captured; the CLS rows cost one query row a head.
    """
    if capture is Capture.NONE:
        return F.scaled_dot_product_attention(q, k, v), None
    if capture is Capture.CLS_ROWS:
        return F.scaled_dot_product_attention(q, k, v), softmax_weights(q[:, :, :1], k).squeeze(2).mean(1)
    weights = softmax_weights(q, k)
    return weights.to(v.dtype) @ v, fuse_heads(weights, capture)


def softmax_weights(
    q: Float[Tensor, "batch head query channel"], k: Heads
) -> Float[Tensor, "batch head query token"]:
    """The attention weights of each query, float32; rows sum to 1."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return torch.softmax(scores, dim=-1, dtype=torch.float32)


def fuse_heads(
    weights: Float[Tensor, "batch head token token"], capture: Capture
) -> Float[Tensor, "batch ..."]:
    """Mean, max or min over heads, or every head, as `capture` says."""
    match capture:
        case Capture.FUSED_MEAN:
            return weights.mean(1)
        case Capture.FUSED_MAX:
            return weights.amax(1)
        case Capture.FUSED_MIN:
            return weights.amin(1)
        case _:
            return weights
