"""The one architecture that everybody computes, with random weights: speed does not depend on them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from service.engine.runner import LoadedModel, Runner
from service.models.spec import Architecture, architecture
from service.models.vit import VisionTransformer
from service.store.registry import Registry
from service.types import Preprocess
from service.weights.checkpoint import Checkpoint

NAME = "benchmark"
HALF = (0.5, 0.5, 0.5)


@contextmanager
def store(model: str) -> Iterator[Registry]:
    """A store of its own with the model, under NAME, for as long as it is needed."""
    with tempfile.TemporaryDirectory(prefix="vit-attention-") as folder:
        registry = Registry(Path(folder))
        add(registry, NAME, architecture(model))
        yield registry


def add(registry: Registry, name: str, shape: Architecture) -> None:
    """Stores a model with random weights; its preprocessing is that of google/vit-base-patch16-224."""
    torch.manual_seed(0)
    preprocess = Preprocess(shape.trained_size, shape.trained_size, "bilinear", HALF, HALF)
    state = VisionTransformer(shape).state_dict()
    registry.add(name, Checkpoint(shape, preprocess, None, state), "random weights", None)


def load(runner: Runner, registry: Registry) -> LoadedModel:
    """Our model, as the service loads it."""
    return runner.load(*registry.load(registry.open(NAME)))


def transformers_vit(model: str, attention: str) -> nn.Module:
    """The same architecture as transformers' ViTForImageClassification; attention: eager or sdpa."""
    from transformers import ViTConfig, ViTForImageClassification
    from transformers.utils import logging

    logging.set_verbosity_error()
    shape = architecture(model)
    config = ViTConfig(
        hidden_size=shape.width,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        intermediate_size=shape.mlp_width,
        image_size=shape.trained_size[0],
        patch_size=shape.patch,
        num_labels=shape.classes,
        attn_implementation=attention,
    )
    torch.manual_seed(0)
    return ViTForImageClassification(config).eval().requires_grad_(False)
