"""Which importer reads a path, and labels for what it read."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel

from service.errors import CheckpointError
from service.weights.checkpoint import Checkpoint
from service.weights.files import read_json, reading
from service.weights.huggingface import read_huggingface
from service.weights.jax_npz import read_jax_npz
from service.weights.timm import read_timm
from service.weights.torch_checkpoint import read_torch_checkpoint

Importer = Callable[[Path], Checkpoint]
BY_SUFFIX: dict[str, Importer] = {
    ".npz": read_jax_npz,
    ".safetensors": read_timm,
    ".bin": read_torch_checkpoint,
    ".pth": read_torch_checkpoint,
}


class Kind(BaseModel):
    """The fields of a config.json that tell whose it is."""

    architecture: str | None = None  # timm's
    architectures: list[str] | None = None  # transformers'


def read_checkpoint(path: Path, labels: list[str] | None = None) -> Checkpoint:
    """The checkpoint at `path`, a file or a folder, in whichever supported format it is.

    labels: one a class in class order, in place of the file's own.
    Raises CheckpointError where nothing is there, nothing fits, or labels and classes differ in number.
    """
    checkpoint = importer(path)(path)
    named = checkpoint if labels is None else replace(checkpoint, labels=labels)
    check(named, path)
    return named


def importer(path: Path) -> Importer:
    """The importer for a folder, by its config.json, or for a file, by its suffix."""
    if not path.exists():
        raise CheckpointError(f"{path} does not exist.")
    if path.is_dir():
        return folder_importer(path)
    if path.suffix.lower() not in BY_SUFFIX:
        raise CheckpointError(
            f"{path} has no known suffix: expected {', '.join(BY_SUFFIX)}, or a folder with config.json."
        )
    return BY_SUFFIX[path.suffix.lower()]


def folder_importer(folder: Path) -> Importer:
    """Hugging Face's or timm's, as config.json says."""
    config = folder / "config.json"
    if not config.exists():
        raise CheckpointError(
            f"{folder} holds no config.json. Give a Hugging Face or timm folder, or one weight file."
        )
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{folder} holds no .safetensors file; pickles in such folders are not read. "
            "Save the model with save_pretrained, which writes safetensors, or choose one that offers them."
        )
    kind = read_json(config, Kind)
    if kind.architectures is not None:
        return read_huggingface
    if kind.architecture is not None:
        return read_timm
    raise CheckpointError(
        f"{config} names no model: neither transformers' architectures nor timm's architecture."
    )


def check(checkpoint: Checkpoint, path: Path) -> None:
    """CheckpointError where labels don't number the classes, or the preprocessing can't feed the model."""
    arch, preprocess, labels = checkpoint.architecture, checkpoint.preprocess, checkpoint.labels
    if labels is not None and len(labels) != arch.classes:
        raise CheckpointError(f"{path} has {arch.classes} classes, but there are {len(labels)} labels.")
    height, width = preprocess.input_size
    if min(height, width) < arch.patch or height % arch.patch or width % arch.patch:
        raise CheckpointError(
            f"{path}: its preprocessing makes {height} x {width} pixels, "
            f"which its patches of {arch.patch} pixels don't tile."
        )
    resize = preprocess.resize
    rows, columns = (resize, resize) if isinstance(resize, int) else resize
    if rows < height or columns < width:
        raise CheckpointError(
            f"{path}: its preprocessing resizes to {resize} and can't crop {height} x {width} from it."
        )
    if not all(map(math.isfinite, (*preprocess.mean, *preprocess.std))) or min(preprocess.std) <= 0:
        raise CheckpointError(f"{path}: mean {preprocess.mean} and std {preprocess.std} normalise no image.")


def read_labels(path: Path) -> list[str]:
    """The labels in a UTF-8 text file, one a line in class order.

    Raises CheckpointError where the file can't be read or a line is empty.
    """
    with reading(path, "a UTF-8 text file"):
        labels = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    if not all(labels) or not labels:
        raise CheckpointError(
            f"{path}: line {labels.index('') + 1 if labels else 1} is empty; expected a label a line."
        )
    return labels
