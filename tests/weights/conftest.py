"""Small checkpoints in each format, in sizes that no transpose survives by luck."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from service.models.vit import VisionTransformer
from service.types import Capture, Trace
from service.weights.assign import assign
from service.weights.checkpoint import Checkpoint

HEADS, CHANNELS, MLP, PATCH, SIDE, CLASSES, DEPTH = 3, 7, 29, 5, 4, 11, 2
WIDTH = HEADS * CHANNELS

Arrays = dict[str, np.ndarray]
Tensors = dict[str, Tensor]


def jax_arrays(channels: int = CHANNELS) -> Arrays:
    """Random arrays under the classic names of the official files."""
    random = np.random.default_rng(7)
    width = HEADS * channels
    shapes: dict[str, tuple[int, ...]] = {
        "cls": (1, 1, width),
        "Transformer/posembed_input/pos_embedding": (1, SIDE * SIDE + 1, width),
        "embedding/kernel": (PATCH, PATCH, 3, width),
        "embedding/bias": (width,),
        "Transformer/encoder_norm/scale": (width,),
        "Transformer/encoder_norm/bias": (width,),
        "head/kernel": (width, CLASSES),
        "head/bias": (CLASSES,),
    }
    for i in range(DEPTH):
        block = f"Transformer/encoderblock_{i}/"
        attention = block + "MultiHeadDotProductAttention_1/"
        for name in ("query", "key", "value"):
            shapes |= {f"{attention}{name}/kernel": (width, HEADS, channels)}
            shapes |= {f"{attention}{name}/bias": (HEADS, channels)}
        shapes |= {attention + "out/kernel": (HEADS, channels, width), attention + "out/bias": (width,)}
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            shapes |= {f"{block}{norm}/scale": (width,), f"{block}{norm}/bias": (width,)}
        shapes |= {
            block + "MlpBlock_3/Dense_0/kernel": (width, MLP),
            block + "MlpBlock_3/Dense_0/bias": (MLP,),
        }
        shapes |= {
            block + "MlpBlock_3/Dense_1/kernel": (MLP, width),
            block + "MlpBlock_3/Dense_1/bias": (width,),
        }
    return {name: random.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


def timm_tensors(
    *,
    grid: tuple[int, int] = (SIDE, SIDE),
    dist: bool = False,
    registers: int = 0,
    no_embed_class: bool = False,
    layer_scale: bool = False,
    qkv_bias: bool = True,
    width: int = WIDTH,
) -> Tensors:
    """Random tensors under timm's names."""
    prefix = 0 if no_embed_class else 1 + dist + registers
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, grid[0] * grid[1] + prefix, width),
        "patch_embed.proj.weight": (width, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "head.weight": (CLASSES, width),
        "head.bias": (CLASSES,),
    }
    if dist:
        shapes |= {
            "dist_token": (1, 1, width),
            "head_dist.weight": (CLASSES, width),
            "head_dist.bias": (CLASSES,),
        }
    if registers:
        shapes["reg_token"] = (1, registers, width)
    for i in range(DEPTH):
        block = f"blocks.{i}."
        linears = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
        linears |= {"mlp.fc1": (MLP, width), "mlp.fc2": (width, MLP)}
        for name, shape in linears.items():
            shapes |= {f"{block}{name}.weight": shape, f"{block}{name}.bias": shape[:1]}
        for norm in ("norm1", "norm2"):
            shapes |= {f"{block}{norm}.weight": (width,), f"{block}{norm}.bias": (width,)}
        if layer_scale:
            shapes |= {block + "ls1.gamma": (width,), block + "ls2.gamma": (width,)}
        if not qkv_bias:
            del shapes[block + "attn.qkv.bias"]
    generator = torch.Generator().manual_seed(11)
    return {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}


def timm_config(height: int = SIDE * PATCH, width: int = SIDE * PATCH) -> dict[str, object]:
    """A hub folder's config.json, as timm/models/_hub.py writes it."""
    return {
        "architecture": "vit_small_patch16_224",
        "num_classes": CLASSES,
        "num_features": WIDTH,
        "global_pool": "token",
        "model_args": {"num_heads": HEADS, "img_size": [height, width]},
        "pretrained_cfg": {
            "input_size": [3, height, width],
            "interpolation": "bicubic",
            "crop_pct": 0.9,
            "crop_mode": "center" if height == width else "squash",
            "mean": [0.1, 0.2, 0.3],
            "std": [0.4, 0.5, 0.6],
            "num_classes": CLASSES,
        },
    }


@pytest.fixture
def write_npz(tmp_path: Path) -> Callable[[Arrays], Path]:
    def write(arrays: Arrays) -> Path:
        np.savez(tmp_path / "vit.npz", **arrays)
        return tmp_path / "vit.npz"

    return write


@pytest.fixture
def write_timm(tmp_path: Path) -> Callable[..., Path]:
    """Writes a hub folder."""

    def write(tensors: Tensors, config: dict[str, object] | None = None) -> Path:
        save_file(tensors, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(config or timm_config()))
        return tmp_path

    return write


@pytest.fixture
def jax() -> Callable[..., Arrays]:
    return jax_arrays


@pytest.fixture
def timm() -> Callable[..., Tensors]:
    return timm_tensors


@pytest.fixture
def config() -> Callable[..., dict[str, object]]:
    return timm_config


@pytest.fixture
def run() -> Callable[..., Trace]:
    """Runs an imported checkpoint in float32."""

    def run(checkpoint: Checkpoint, pixels: Tensor, capture: Capture = Capture.PER_HEAD) -> Trace:
        model = VisionTransformer(checkpoint.architecture).eval()
        assign(model, checkpoint.state)
        with torch.inference_mode():
            return model(pixels, capture)

    return run
