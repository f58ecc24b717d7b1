"""The official JAX checkpoints (.npz), under the names of all three code bases that wrote them.

- classic, before Linen: MultiHeadDotProductAttention_1, LayerNorm_2, MlpBlock_3 (the published ViT-*.npz)
- Linen (google-research/vision_transformer, vit_jax/models_vit.py): MultiHeadDotProductAttention_0,
  LayerNorm_1, MlpBlock_0
- Linen in big_vision (big_vision/models/vit.py): below params/ or opt/target/, positions at the top and
  without the CLS token's, blocks stacked along the first axis where it was trained with scan=True

Kernels are (in, out), the patch kernel (height, width, in, out), attention kernels (width, heads, channels)
for queries, keys and values and (heads, channels, width) for the output.

Those code bases compute GELU by its tanh approximation; the model, like every PyTorch port, exactly.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from service.errors import CheckpointError
from service.models.spec import Architecture
from service.weights.checkpoint import Checkpoint
from service.weights.files import reading
from service.weights.layout import (
    Parts,
    Shape,
    assemble,
    check_shapes,
    count_blocks,
    expected_shapes,
    ignore,
    infer,
    refuse,
    rename,
    square_grid,
    squash_preprocess,
    weight_and_bias,
)

BLOCK = "Transformer/encoderblock_"
STACKED = "Transformer/encoderblock/"
POSITIONS = ("Transformer/posembed_input/pos_embedding", "Transformer/pos_embedding", "pos_embedding")
ROOTS = ("params/", "opt/target/")  # where a training state keeps its parameters
TRAINING_STATE = ("opt/", "chrono/", "extra/")

# our module -> the number that classic and Linen names end in
CLASSIC = {
    "norm1": "LayerNorm_0",
    "attn": "MultiHeadDotProductAttention_1",
    "norm2": "LayerNorm_2",
    "mlp": "MlpBlock_3",
}
LINEN = {
    "norm1": "LayerNorm_0",
    "attn": "MultiHeadDotProductAttention_0",
    "norm2": "LayerNorm_1",
    "mlp": "MlpBlock_0",
}

OTHER_MODELS = {
    "pre_logits/": "a representation layer before the head, which the model has not. "
    "Use a checkpoint fine-tuned on its classes, such as the imagenet2012 ones.",
    "conv_root/": "a hybrid with a ResNet root. Use a plain ViT such as B/16.",
    "MAPHead_0/": "it pools by attention (MAP) and has no CLS token. Use one trained with pool_type='tok'.",
    "probe": "it pools by attention (MAP) and has no CLS token. Use one trained with pool_type='tok'.",
}


def read_jax_npz(path: Path) -> Checkpoint:
    """The checkpoint in an official JAX .npz; heads and every size are read from the shapes.

    Raises CheckpointError for pickled objects, corrupt files and whatever does not fit.
    """
    tensors = unstack(find_parameters(read_npz(path), path))
    refuse(tensors, OTHER_MODELS, path)
    if "cls" not in tensors:
        raise CheckpointError(f"{path} holds no cls: it averages its tokens. Use a ViT with a CLS token.")
    parts = rename(tensors, names(tensors), count_blocks(tensors, BLOCK), path)
    arch = infer(
        parts,
        patch=parts.size("patch_embed.weight", 0),
        heads=parts.size("blocks.0.query.bias", 0),
        grid=square_grid(parts, prefix_tokens=1),
    )
    shapes = expected_shapes(parts, arch)
    check_shapes(parts, {part: jax_shape(part, shape, arch) for part, shape in shapes.items()})
    turned = {part: to_torch(part, tensor).reshape(shapes[part]) for part, tensor in parts.tensors.items()}
    state = assemble(Parts(path, turned, parts.names), arch)
    return Checkpoint(arch, squash_preprocess(arch.trained_size), None, state)


def read_npz(path: Path) -> dict[str, Tensor]:
    """Every array of an .npz by name; pickled objects are refused, never loaded."""
    with reading(path, "an .npz file"), path.open("rb") as file:
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise CheckpointError(f"{path} is a single array, not an .npz archive of named ones.")
        with archive:
            return {name: read_array(archive, name, path) for name in archive.files}


def read_array(archive: np.lib.npyio.NpzFile, name: str, path: Path) -> Tensor:
    """One array of the archive; bfloat16, which NumPy stores as two-byte voids, is recognised."""
    try:
        array = archive[name]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise CheckpointError(
            f"{path}: {name} is a pickled Python object, which could run code and is never loaded. "
            "Save it as a plain array."
        ) from error
    if array.dtype == np.dtype("V2"):
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def find_parameters(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The parameters of a training state by their bare names; the optimiser's state is left out, logged."""
    for root in ROOTS:
        if any(name.startswith(root) for name in tensors):
            inside = {name.removeprefix(root): t for name, t in tensors.items() if name.startswith(root)}
            outside = {name: t for name, t in tensors.items() if not name.startswith(root)}
            return inside | ignore(outside, TRAINING_STATE, path)
    return tensors


def unstack(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Blocks that scan=True stacked along the first axis, under a name each."""
    single: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith(STACKED) and tensor.ndim:
            leaf = name.removeprefix(STACKED)
            single |= {f"{BLOCK}{i}/{leaf}": block for i, block in enumerate(tensor)}
        else:
            single[name] = tensor
    return single


def names(tensors: dict[str, Tensor]) -> dict[str, str]:
    """The table of parts for the names that this file uses."""
    block = BLOCK + "{i}/"
    inner = CLASSIC if any(CLASSIC["attn"] in name for name in tensors) else LINEN
    attention = {
        f"blocks.{{i}}.{part}": f"{block}{inner['attn']}/{name}"
        for part, name in {"query": "query", "key": "key", "value": "value", "proj": "out"}.items()
    }
    kernels = {
        "patch_embed": "embedding",
        **attention,
        "blocks.{i}.fc1": f"{block}{inner['mlp']}/Dense_0",
        "blocks.{i}.fc2": f"{block}{inner['mlp']}/Dense_1",
        "head": "head",
    }
    norms = {
        "blocks.{i}.norm1": block + inner["norm1"],
        "blocks.{i}.norm2": block + inner["norm2"],
        "norm": "Transformer/encoder_norm",
    }
    positions = next((name for name in POSITIONS if name in tensors), POSITIONS[0])
    return {
        "cls": "cls",
        "pos": positions,
        **weight_and_bias(kernels, dot="/", weight="kernel"),
        **weight_and_bias(norms, dot="/", weight="scale"),
    }


def jax_shape(part: str, shape: Shape, arch: Architecture) -> Shape:
    """The shape that JAX gives a part which PyTorch gives `shape`."""
    heads = (arch.heads, arch.width // arch.heads)
    if part.endswith((".query.bias", ".key.bias", ".value.bias")):
        return heads
    if part.endswith((".query.weight", ".key.weight", ".value.weight")):
        return arch.width, *heads
    if part.endswith(".proj.weight"):
        return *heads, arch.width
    if part == "patch_embed.weight":
        return arch.patch, arch.patch, 3, arch.width
    return shape[::-1] if part.endswith(".weight") else shape


def to_torch(part: str, tensor: Tensor) -> Tensor:
    """JAX's axes in PyTorch's order, attention's heads and channels joined."""
    if not part.endswith(".weight") or tensor.ndim == 1:
        return tensor
    if part == "patch_embed.weight":
        return tensor.permute(3, 2, 0, 1)
    return (tensor.flatten(0, 1) if part.endswith(".proj.weight") else tensor.flatten(1)).T
