"""timm's ViT and DeiT as safetensors: a bare file, or a hub folder with timm's config.json.

Shapes tell everything but the heads. Those are config.json's model_args.num_heads, else what timm gives every
ViT of that width (HEADS: 64 channels a head, but for the widths of so400m, huge, giant and gigantic).

A bare file states no preprocessing and takes that of the official JAX models: squash to the trained size,
bilinear, mean = std = 0.5.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, cast, get_args

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from service.errors import CheckpointError
from service.models.spec import VARIANTS
from service.types import Interpolation, Preprocess, Size
from service.weights.checkpoint import Checkpoint
from service.weights.files import read_json, read_safetensors
from service.weights.layout import (
    Parts,
    assemble,
    check_shapes,
    count_blocks,
    expected_shapes,
    infer,
    refuse,
    rename,
    square_grid,
    squash_preprocess,
    weight_and_bias,
)

ARCHITECTURES = ("vit_", "deit_", "deit3_", "flexivit_", "test_vit")
# width -> heads in timm/models/vision_transformer.py
HEADS = {width: heads for width, _, heads, _ in VARIANTS.values()}
HEADS |= {512: 8, 640: 10, 832: 13, 896: 14, 1152: 16, 1408: 16, 1664: 16}

USE_TOKEN = "not the CLS token. Use a model with global_pool='token'."
AVERAGES = f"its head reads the tokens' average (global_pool='avg'), {USE_TOKEN}"
OTHER_MODELS = {
    "fc_norm.": AVERAGES,
    "attn_pool.": f"its head reads a pooling by attention (global_pool='map'), {USE_TOKEN}",
    "norm_pre.": "a norm before the blocks (CLIP), which the model has not. Use a ViT without pre-norm.",
    "patch_embed.backbone.": "a hybrid with a convolutional root. Use a plain ViT.",
    "vit.": "these are Hugging Face's names. Give the folder that holds config.json beside it.",
    "deit.": "these are Hugging Face's names. Give the folder that holds config.json beside it.",
}

NAMES = {
    "cls": "cls_token",
    "pos": "pos_embed",
    **weight_and_bias(
        {
            "patch_embed": "patch_embed.proj",
            "blocks.{i}.norm1": "blocks.{i}.norm1",
            "blocks.{i}.qkv": "blocks.{i}.attn.qkv",
            "blocks.{i}.proj": "blocks.{i}.attn.proj",
            "blocks.{i}.norm2": "blocks.{i}.norm2",
            "blocks.{i}.fc1": "blocks.{i}.mlp.fc1",
            "blocks.{i}.fc2": "blocks.{i}.mlp.fc2",
            "norm": "norm",
            "head": "head",
        }
    ),
}
# what only some models have: part -> timm's name, all blocks or none
OPTIONAL = {
    "dist": "dist_token",
    "registers": "reg_token",
    "blocks.{i}.gamma1": "blocks.{i}.ls1.gamma",
    "blocks.{i}.gamma2": "blocks.{i}.ls2.gamma",
    **weight_and_bias({"head_dist": "head_dist"}),
}

Triple = tuple[float, float, float]


class ModelArgs(BaseModel):
    """The arguments that the architecture was built with: those that the model can follow, no others."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    num_heads: PositiveInt | None = None
    img_size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    global_pool: Literal["token"] = "token"
    class_token: Literal[True] = True
    # told by the tensors' names and shapes
    patch_size: Any = None
    embed_dim: Any = None
    depth: Any = None
    mlp_ratio: Any = None
    num_classes: Any = None
    in_chans: Any = None
    qkv_bias: Any = None
    init_values: Any = None
    reg_tokens: Any = None
    no_embed_class: Any = None
    # without effect on a trained model at its own size
    dynamic_img_size: Any = None
    weight_init: Any = None
    drop_rate: Any = None
    pos_drop_rate: Any = None
    proj_drop_rate: Any = None
    attn_drop_rate: Any = None
    drop_path_rate: Any = None


class Labelled(BaseModel):
    """Class names, in either of the two places where timm puts them."""

    label_names: list[str] | dict[int, str] | None = None
    label_descriptions: dict[str, str] | None = None


class PretrainedConfig(Labelled):
    """How the weights were evaluated, with timm's defaults (timm/data/constants.py)."""

    input_size: tuple[PositiveInt, PositiveInt, PositiveInt] = (3, 224, 224)
    interpolation: str = "bicubic"
    crop_pct: PositiveFloat = 0.875
    crop_mode: str = "center"
    mean: Triple = (0.485, 0.456, 0.406)
    std: Triple = (0.229, 0.224, 0.225)


class Config(Labelled):
    """timm's config.json; the oldest ones hold the fields of pretrained_cfg at the top."""

    architecture: str
    global_pool: str = "token"
    model_args: ModelArgs = ModelArgs()
    pretrained_cfg: PretrainedConfig

    model_config = ConfigDict(protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def nest(cls, fields: Any) -> Any:
        """The oldest form as the present one."""
        if isinstance(fields, dict) and "pretrained_cfg" not in fields:
            return {**fields, "pretrained_cfg": fields}
        return fields


def read_timm(path: Path) -> Checkpoint:
    """The checkpoint in a bare timm .safetensors file, or in a hub folder.

    Raises CheckpointError for a model that is no ViT with a CLS token, for heads that can't be known, and
    for whatever is missing, left over or misshapen.
    """
    if not path.is_dir():
        return read(path, None)
    config_file = path / "config.json"
    config = read_json(config_file, Config)
    refuse_architecture(config, config_file)
    return read(path / "model.safetensors", config)


def read(path: Path, config: Config | None) -> Checkpoint:
    """The checkpoint in one file of tensors, with what its config.json adds."""
    tensors = read_safetensors(path)
    refuse(tensors, OTHER_MODELS, path)
    if "cls_token" not in tensors and "patch_embed.proj.weight" in tensors:
        raise CheckpointError(f"{path} holds no cls_token: {AVERAGES}")
    parts = rename(tensors, table(tensors), count_blocks(tensors, "blocks."), path)
    arch = infer(
        parts,
        patch=parts.size("patch_embed.weight", -1),
        heads=heads(parts, config),
        grid=grid(parts, config),
    )
    check_shapes(parts, expected_shapes(parts, arch))
    state = assemble(parts, arch)
    if config is None:
        return Checkpoint(arch, squash_preprocess(arch.trained_size), None, state)
    config_file = path.with_name("config.json")
    return Checkpoint(
        arch, preprocess(config.pretrained_cfg, config_file), labels(config, config_file), state
    )


def refuse_architecture(config: Config, path: Path) -> None:
    """CheckpointError for a model whose tensors could pass for a ViT's and are not."""
    name = config.architecture
    if not name.startswith(ARCHITECTURES) or "quickgelu" in name:
        raise CheckpointError(
            f"{path}: the architecture {name} is no plain ViT (vit_*, deit_*, deit3_*, flexivit_*)."
        )
    if config.global_pool != "token":
        raise CheckpointError(
            f"{path}: global_pool is {config.global_pool!r}; the head must read the CLS token ('token')."
        )


def table(tensors: dict[str, Tensor]) -> dict[str, str]:
    """The table of parts for the kinds of tensor that this file has."""
    first = {part: name.replace("{i}", "0") for part, name in (NAMES | OPTIONAL).items()}
    has_bias = first["blocks.{i}.qkv.bias"] in tensors
    chosen = {part: name for part, name in OPTIONAL.items() if first[part] in tensors}
    names = NAMES | chosen
    return {part: name for part, name in names.items() if has_bias or not part.endswith("qkv.bias")}


def heads(parts: Parts, config: Config | None) -> int:
    """Attention heads: config.json's, else those of timm's ViTs of that width."""
    width = parts.size("cls", -1)
    stated = config.model_args.num_heads if config else None
    known = stated or HEADS.get(width)
    if known is None:
        raise CheckpointError(
            f"{parts.path}: nothing tells how many heads a ViT of width {width} has. "
            'Put {"model_args": {"num_heads": ...}} into timm\'s config.json beside it and give the folder.'
        )
    return known


def grid(parts: Parts, config: Config | None) -> Size:
    """(rows, columns) of the positions: img_size's or input_size's where stated, else square."""
    tokens = sum(parts.size(token, 1) for token in ("cls", "dist", "registers") if token in parts.tensors)
    if config is None:
        return square_grid(parts, tokens)
    size = config.model_args.img_size or config.pretrained_cfg.input_size[1:]
    height, width = (size, size) if isinstance(size, int) else size
    patch = max(parts.size("patch_embed.weight", -1), 1)
    rows, columns = height // patch, width // patch
    count = parts.size("pos", 1)
    if count not in (rows * columns, rows * columns + tokens):
        raise CheckpointError(
            f"{parts.path}: pos_embed has {count} positions, but config.json's input of {height} x {width} "
            f"makes {rows} x {columns} patches. State the trained size as model_args.img_size."
        )
    return rows, columns


def preprocess(config: PretrainedConfig, path: Path) -> Preprocess:
    """timm's evaluation transform (timm/data/transforms_factory.py): to input / crop_pct, centre crop."""
    size = config.input_size[1:]
    if config.interpolation not in get_args(Interpolation):
        raise CheckpointError(
            f"{path}: interpolation is {config.interpolation!r}; "
            f"supported are {', '.join(get_args(Interpolation))}."
        )
    scaled = math.floor(size[0] / config.crop_pct), math.floor(size[1] / config.crop_pct)
    square = size[0] == size[1]
    if config.crop_pct > 1 or not (config.crop_mode == "squash" or (config.crop_mode == "center" and square)):
        raise CheckpointError(
            f"{path}: crop_mode {config.crop_mode!r} at {size[0]} x {size[1]}, crop_pct {config.crop_pct}: "
            "supported are 'squash', and 'center' for a square input, with crop_pct up to 1."
        )
    resize = scaled if config.crop_mode == "squash" else scaled[0]
    return Preprocess(size, resize, cast(Interpolation, config.interpolation), config.mean, config.std)


def labels(config: Config, path: Path) -> list[str] | None:
    """Class names in class order, their descriptions where given; None where timm keeps them elsewhere."""
    names = config.label_names or config.pretrained_cfg.label_names
    described = config.label_descriptions or config.pretrained_cfg.label_descriptions or {}
    if names is None:
        return None
    numbered = names if isinstance(names, dict) else dict(enumerate(names))
    if sorted(numbered) != list(range(len(numbered))):
        raise CheckpointError(f"{path}: label_names does not number its labels 0, 1, 2 and so on.")
    return [described.get(numbered[i], numbered[i]) for i in range(len(numbered))]
