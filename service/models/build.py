"""Family -> model class, and a model of it whose weights are about to be assigned."""

from __future__ import annotations

import torch
from torch import nn

from service.errors import StoreError
from service.models.spec import Architecture
from service.models.vit import VisionTransformer

FAMILIES: dict[str, type[VisionTransformer]] = {"vit": VisionTransformer}


def build(family: str, architecture: Architecture) -> nn.Module:
    """The model in evaluation mode, float32 on the CPU, its weights allocated but not initialised.

    Random initialisation would take seconds for numbers that are overwritten at once; so would
    nn.Module.to_empty, which imports sympy.
    """
    if family not in FAMILIES:
        raise StoreError(f"Unknown model family {family!r}; this release knows {', '.join(FAMILIES)}.")
    with torch.device("meta"):
        model = FAMILIES[family](architecture)
    memory = {name: torch.empty(meta.shape, dtype=meta.dtype) for name, meta in model.state_dict().items()}
    model.load_state_dict(memory, assign=True)
    return model.eval()
