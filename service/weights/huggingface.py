"""A Hugging Face folder: config.json, preprocessor_config.json, model.safetensors (whole or in shards).

ViTForImageClassification, DeiTForImageClassification (a distillation token, but one head on CLS) and
DeiTForImageClassificationWithTeacher (two heads, averaged), under the names that transformers writes to disk
(encoder.layer.0.attention.attention.query) and under those of its modules since version 5
(layers.0.attention.q_proj), which save_pretrained(save_original_format=False) writes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, PositiveFloat, PositiveInt
from torch import Tensor

from service.errors import CheckpointError
from service.models.spec import Architecture
from service.types import Size
from service.weights.checkpoint import Checkpoint
from service.weights.files import read_json, read_safetensors
from service.weights.huggingface_preprocess import read_preprocess
from service.weights.layout import (
    Parts,
    assemble,
    check_shapes,
    count_blocks,
    expected_shapes,
    ignore,
    rename,
    weight_and_bias,
)

# architecture -> where its encoder is, and its heads by part
HEADS = {
    "ViTForImageClassification": ("vit", {"head": "classifier"}),
    "DeiTForImageClassification": ("deit", {"head": "classifier"}),
    "DeiTForImageClassificationWithTeacher": (
        "deit",
        {"head": "cls_classifier", "head_dist": "distillation_classifier"},
    ),
}
ON_DISK = {
    "query": "attention.attention.query",
    "key": "attention.attention.key",
    "value": "attention.attention.value",
    "proj": "attention.output.dense",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
}
MODULES = {
    "query": "attention.q_proj",
    "key": "attention.k_proj",
    "value": "attention.v_proj",
    "proj": "attention.o_proj",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}
NORMS = {"norm1": "layernorm_before", "norm2": "layernorm_after"}


class Config(BaseModel):
    """What config.json says, with transformers' defaults (ViTConfig and DeiTConfig have the same)."""

    architectures: list[str]
    hidden_size: PositiveInt = 768
    num_hidden_layers: PositiveInt = 12
    num_attention_heads: PositiveInt = 12
    intermediate_size: PositiveInt = 3072
    hidden_act: str = "gelu"
    layer_norm_eps: PositiveFloat = 1e-12
    image_size: PositiveInt | tuple[PositiveInt, PositiveInt] = 224
    patch_size: PositiveInt | tuple[PositiveInt, PositiveInt] = 16
    num_channels: Literal[3] = 3
    qkv_bias: bool = True
    id2label: dict[int, str] | None = None


class Index(BaseModel):
    """model.safetensors.index.json: which shard holds each tensor."""

    weight_map: dict[str, str]


def read_huggingface(folder: Path) -> Checkpoint:
    """The checkpoint in a Hugging Face folder.

    The pooler, which no classifier reads, is left out and logged.
    Raises CheckpointError for another architecture, activation or processor than the model has, and for
    whatever is missing, left over or misshapen.
    """
    config_file = folder / "config.json"
    config = read_json(config_file, Config)
    base, heads = encoder_and_heads(config, config_file)
    tensors = ignore(read_weights(folder), (f"{base}.pooler.",), folder)
    parts = rename(
        tensors, table(tensors, base, heads, config.qkv_bias), depth(tensors, base, config, folder), folder
    )
    arch = architecture(config, parts, config_file)
    check_shapes(parts, expected_shapes(parts, arch))
    preprocess = read_preprocess(folder / "preprocessor_config.json", base)
    return Checkpoint(arch, preprocess, labels(config, config_file), assemble(parts, arch))


def encoder_and_heads(config: Config, path: Path) -> tuple[str, dict[str, str]]:
    """Where the encoder is and the heads' names; CheckpointError for a model that is not supported."""
    name = config.architectures[0] if config.architectures else "none"
    if name not in HEADS:
        raise CheckpointError(f"{path}: the architecture is {name}; supported are {', '.join(HEADS)}.")
    if config.hidden_act != "gelu":
        raise CheckpointError(
            f"{path}: hidden_act is {config.hidden_act!r}; the model computes exact GELU, 'gelu', only."
        )
    return HEADS[name]


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of model.safetensors, or of the shards that its index names."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").exists() or not index.exists():
        return read_safetensors(folder / "model.safetensors")
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(read_json(index, Index).weight_map.values())):
        if Path(shard).name != shard:
            raise CheckpointError(f"{index} names the shard {shard!r}; a shard lies beside its index.")
        tensors |= read_safetensors(folder / shard)
    return tensors


def depth(tensors: dict[str, Tensor], base: str, config: Config, folder: Path) -> int:
    """The number of blocks, on which the configuration and the weights must agree."""
    held = count_blocks(tensors, layers(tensors, base))
    if held != config.num_hidden_layers:
        raise CheckpointError(
            f"{folder}: config.json says num_hidden_layers is {config.num_hidden_layers}, "
            f"the weights hold {held} blocks below {layers(tensors, base)}."
        )
    return held


def layers(tensors: dict[str, Tensor], base: str) -> str:
    """What the names of blocks start with: transformers' on disk or its modules'."""
    modules = f"{base}.layers."
    return modules if any(name.startswith(modules) for name in tensors) else f"{base}.encoder.layer."


def table(tensors: dict[str, Tensor], base: str, heads: dict[str, str], qkv_bias: bool) -> dict[str, str]:
    """The table of parts for the names that this folder uses."""
    prefix = layers(tensors, base)
    inner = NORMS | (ON_DISK if prefix.endswith(".layer.") else MODULES)
    blocks = {f"blocks.{{i}}.{part}": f"{prefix}{{i}}.{name}" for part, name in inner.items()}
    embeddings = f"{base}.embeddings."
    modules = {
        "patch_embed": embeddings + "patch_embeddings.projection",
        **blocks,
        "norm": f"{base}.layernorm",
        **heads,
    }
    tokens = {"cls": embeddings + "cls_token", "pos": embeddings + "position_embeddings"}
    if base == "deit":
        tokens["dist"] = embeddings + "distillation_token"
    names = tokens | weight_and_bias(modules)
    without = () if qkv_bias else (".query.bias", ".key.bias", ".value.bias")
    return {part: name for part, name in names.items() if not part.endswith(without)}


def architecture(config: Config, parts: Parts, path: Path) -> Architecture:
    """The architecture that config.json states; the tensors are checked against it."""
    rows, columns = pair(config.patch_size)
    if rows != columns:
        raise CheckpointError(f"{path}: patch_size is {rows} x {columns}; the model's patches are square.")
    return Architecture(
        trained_size=pair(config.image_size),
        patch=rows,
        width=config.hidden_size,
        depth=config.num_hidden_layers,
        heads=config.num_attention_heads,
        mlp_width=config.intermediate_size,
        classes=parts.size("head.bias", 0),
        prefix_tokens=1 + ("dist" in parts.tensors),
        distilled="head_dist.bias" in parts.tensors,
        norm_eps=config.layer_norm_eps,
        position_interpolation="bicubic",
    )


def pair(size: int | Size) -> Size:
    """(height, width) of a size that one number may stand for."""
    return (size, size) if isinstance(size, int) else size


def labels(config: Config, path: Path) -> list[str] | None:
    """id2label's names in class order."""
    if config.id2label is None:
        return None
    if sorted(config.id2label) != list(range(len(config.id2label))):
        raise CheckpointError(f"{path}: id2label does not number its labels 0, 1, 2 and so on.")
    return [config.id2label[i] for i in range(len(config.id2label))]
