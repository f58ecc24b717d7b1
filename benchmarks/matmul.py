"""The floor: a ViT's matrix products and nothing else, in the fastest form that torch has."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from service.models.spec import Architecture

Product = Callable[[Tensor], Tensor]


def products(shape: Architecture, batch: int, dtype: torch.dtype, device: str) -> Callable[[], None]:
    """All products of all blocks with their weights, each block with its own, as in the model."""
    tokens = batch * (shape.prefix_tokens + shape.grid[0] * shape.grid[1])
    inputs = {width: torch.randn(tokens, width, dtype=dtype, device=device) for width, _ in _sizes(shape)}
    layers = [
        (inputs[width], _product(torch.randn(out, width, dtype=dtype, device=device), tokens))
        for _ in range(shape.depth)
        for width, out in _sizes(shape)
    ]

    @torch.inference_mode()
    def run() -> None:
        for x, product in layers:
            product(x)
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    return run


def operations(shape: Architecture) -> float:
    """Floating-point operations in these products, an image."""
    tokens = shape.prefix_tokens + shape.grid[0] * shape.grid[1]
    return 2 * tokens * shape.depth * sum(width * out for width, out in _sizes(shape))


def _sizes(shape: Architecture) -> list[tuple[int, int]]:
    """Input and output width of qkv, proj, fc1, fc2."""
    width, hidden = shape.width, shape.mlp_width
    return [(width, 3 * width), (width, width), (width, hidden), (hidden, width)]


def _product(weight: Tensor, tokens: int) -> Product:
    """x W^T; on a CPU with oneDNN's prepacked weights where this torch has them."""
    if weight.device.type == "cpu" and torch.backends.mkldnn.is_available():
        try:
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, tokens)
            return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
        except (AttributeError, RuntimeError):
            pass
    return lambda x: torch.nn.functional.linear(x, weight)
