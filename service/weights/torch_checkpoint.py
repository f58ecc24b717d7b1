"""jeonsworld/ViT-pytorch's *_checkpoint.bin: torch.save of VisionTransformer.state_dict().

The file is a pickle, so only tensors and plain containers are read from it (weights_only): a pickle that
names anything else is refused before it runs.
"""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from service.errors import CheckpointError
from service.models.spec import VARIANTS
from service.weights.checkpoint import Checkpoint
from service.weights.files import reading
from service.weights.layout import (
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

EMBEDDINGS = "transformer.embeddings."
LAYER = "transformer.encoder.layer."
NAMES = {
    "cls": EMBEDDINGS + "cls_token",
    "pos": EMBEDDINGS + "position_embeddings",
    **weight_and_bias(
        {
            "patch_embed": EMBEDDINGS + "patch_embeddings",
            "blocks.{i}.norm1": LAYER + "{i}.attention_norm",
            "blocks.{i}.query": LAYER + "{i}.attn.query",
            "blocks.{i}.key": LAYER + "{i}.attn.key",
            "blocks.{i}.value": LAYER + "{i}.attn.value",
            "blocks.{i}.proj": LAYER + "{i}.attn.out",
            "blocks.{i}.norm2": LAYER + "{i}.ffn_norm",
            "blocks.{i}.fc1": LAYER + "{i}.ffn.fc1",
            "blocks.{i}.fc2": LAYER + "{i}.ffn.fc2",
            "norm": "transformer.encoder.encoder_norm",
            "head": "head",
        }
    ),
}
OTHER_MODELS = {
    EMBEDDINGS + "hybrid_model.": "a hybrid with a ResNet root. Use a plain ViT such as ViT-B_16.",
    "blocks.": "these are timm's names. Save the state_dict as .safetensors and import that.",
    "vit.": "these are Hugging Face's names. Save the model with save_pretrained and give the folder.",
    "deit.": "these are Hugging Face's names. Save the model with save_pretrained and give the folder.",
}
# width -> heads in its models/configs.py
HEADS = {width: heads for width, _, heads, _ in VARIANTS.values()}


def read_torch_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a ViT-pytorch state_dict; heads follow from the width, the rest from the shapes.

    Raises CheckpointError for a pickle that holds more than tensors, and for whatever does not fit.
    """
    tensors = read_pickle(path)
    refuse(tensors, OTHER_MODELS, path)
    parts = rename(tensors, NAMES, count_blocks(tensors, LAYER), path)
    width = parts.size("cls", -1)
    if width not in HEADS:
        raise CheckpointError(
            f"{path}: nothing tells how many heads a ViT of width {width} has; "
            f"known widths are {', '.join(map(str, HEADS))}."
        )
    arch = infer(
        parts,
        patch=parts.size("patch_embed.weight", -1),
        heads=HEADS[width],
        grid=square_grid(parts, prefix_tokens=1),
    )
    check_shapes(parts, expected_shapes(parts, arch))
    return Checkpoint(arch, squash_preprocess(arch.trained_size), None, assemble(parts, arch))


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The named tensors of a torch.save file; nothing else in it is ever constructed."""
    with reading(path, "a torch.save file"):
        try:
            mapped = zipfile.is_zipfile(path)  # the format before PyTorch 1.6 can't be memory-mapped
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{path} is refused: its pickle is corrupt or holds more than tensors, which could run code. "
                "Save model.state_dict() alone, or use .safetensors."
            ) from error
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in tensors.items()
    ):
        raise CheckpointError(f"{path} is no state_dict (names and tensors). Save model.state_dict() alone.")
    return dict(tensors)
