"""Copies a state into a model, strictly."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from service.errors import CheckpointError
from service.weights.layout import describe, finite


def assign(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Copies every tensor into the model's parameter or buffer of that name.

    Raises CheckpointError, before anything is copied, listing each tensor that is missing, left over,
    misshapen (with the expected and the found shape) or not finite.
    """
    own = model.state_dict()
    shared = [name for name in own if name in state]
    misshapen = [
        f"{name} (expected {tuple(own[name].shape)}, found {tuple(state[name].shape)})"
        for name in shared
        if own[name].shape != state[name].shape
    ]
    problems = [
        *describe("missing", [name for name in own if name not in state]),
        *describe("left over", [name for name in state if name not in own]),
        *describe("misshapen", misshapen),
        *describe("not finite", [name for name in shared if not finite(state[name])]),
    ]
    if problems:
        raise CheckpointError(f"The weights don't fit the {type(model).__name__}: {'; '.join(problems)}.")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])
