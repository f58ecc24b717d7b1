"""From a file's tensors to the model's one layout (models/vit.py): rename, check, assemble.

An importer's table maps a part to the file's name for it, "{i}" standing for the block. Parts are the
model's own parameter names, but for those that formats store in pieces:

    cls, dist       (1, 1, width): CLS and distillation token
    registers       (1, registers, width)
    pos             (1, positions, width): with or without the prefix tokens' own
    blocks.{i}.query, key, value (where a format has no qkv), and gamma1, gamma2 (LayerScale)
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from service.errors import CheckpointError
from service.models.spec import Architecture
from service.types import Preprocess, Size

log = logging.getLogger(__name__)

Shape = tuple[int, ...]
TOKENS = ("cls", "dist", "registers")
LISTED = 10  # names that an error spells out before it counts the rest


@dataclass(frozen=True)
class Parts:
    """One file's tensors by part, float32.

    names: part -> the file's name for it, which is what errors speak of.
    """

    path: Path
    tensors: dict[str, Tensor]
    names: dict[str, str]

    def size(self, part: str, axis: int) -> int:
        """The length of one axis of a part; CheckpointError where the part has no such axis."""
        shape = self.tensors[part].shape
        if not -len(shape) <= axis < len(shape):
            raise CheckpointError(
                f"{self.path}: {self.names[part]} has shape {tuple(shape)}, too few axes for a ViT."
            )
        return shape[axis]

    def depth(self) -> int:
        """How many blocks there are."""
        return sum(part.endswith(".fc1.weight") for part in self.tensors)


def weight_and_bias(modules: Mapping[str, str], *, dot: str = ".", weight: str = "weight") -> dict[str, str]:
    """A table of tensors from a table of modules: each has a weight and a bias.

    >>> weight_and_bias({"head": "head"}, dot="/", weight="kernel")
    {'head.weight': 'head/kernel', 'head.bias': 'head/bias'}
    """
    leaves = {"weight": weight, "bias": "bias"}
    return {
        f"{part}.{ours}": name + dot + leaf for part, name in modules.items() for ours, leaf in leaves.items()
    }


def count_blocks(names: Iterable[str], prefix: str) -> int:
    """How many different block numbers follow `prefix`."""
    numbered = re.compile(re.escape(prefix) + r"(\d+)\D")
    return len({found[1] for found in map(numbered.match, names) if found})


def refuse(tensors: Iterable[str], reasons: Mapping[str, str], path: Path) -> None:
    """CheckpointError where a name starts with a key of `reasons`: another kind of model, said plainly."""
    for name in tensors:
        for prefix, reason in reasons.items():
            if name.startswith(prefix):
                raise CheckpointError(f"{path} holds {name}: {reason}")


def ignore(tensors: dict[str, Tensor], prefixes: tuple[str, ...], path: Path) -> dict[str, Tensor]:
    """The tensors without those that a classifier never reads; what is left out is logged by name."""
    ignored = sorted(name for name in tensors if name.startswith(prefixes))
    if ignored:
        log.info("%s: ignored, the classifier does not use them: %s", path, ", ".join(ignored))
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(prefixes)}


def rename(tensors: Mapping[str, Tensor], table: Mapping[str, str], depth: int, path: Path) -> Parts:
    """Every tensor under its part's name, in float32.

    Raises CheckpointError listing what is missing, what is left over and what is not finite.
    """
    names = expand(table, max(depth, 1))
    known = set(names.values())
    problems = describe("missing", [name for name in names.values() if name not in tensors])
    problems += describe("left over", [name for name in tensors if name not in known])
    if problems:
        raise CheckpointError(f"{path} does not hold what its format promises: {'; '.join(problems)}.")
    odd = [name for name, tensor in tensors.items() if not (tensor.is_floating_point() and finite(tensor))]
    if odd:
        raise CheckpointError(f"{path}: {describe('not finite floating-point numbers', odd)[0]}.")
    return Parts(path, {part: tensors[name].float() for part, name in names.items()}, names)


def expand(table: Mapping[str, str], depth: int) -> dict[str, str]:
    """The table with an entry a block for each entry that has "{i}"."""
    names = {}
    for part, name in table.items():
        for i in range(depth if "{i}" in part else 1):
            names[part.replace("{i}", str(i))] = name.replace("{i}", str(i))
    return names


def finite(tensor: Tensor) -> bool:
    """Whether every value is neither NaN nor infinite."""
    return bool(tensor.float().isfinite().all())


def describe(what: str, names: list[str]) -> list[str]:
    """One phrase for a list of names, the first ten spelled out; nothing for an empty list."""
    if not names:
        return []
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return [f"{what}: {', '.join(names[:LISTED])}{more}"]


def square_grid(parts: Parts, prefix_tokens: int) -> Size:
    """The patch grid that `pos` covers, where nothing but its length tells: square.

    Positions are the patches' alone (a square number) or the prefix tokens' too.
    """
    count = parts.size("pos", 1)
    for patches in (count, count - prefix_tokens):
        side = math.isqrt(max(patches, 0))
        if side and side * side == patches:
            return side, side
    raise CheckpointError(
        f"{parts.path}: {parts.names['pos']} has {count} positions, which is no square grid of patches, "
        f"with or without {prefix_tokens} prefix token(s)."
    )


def infer(parts: Parts, *, patch: int, heads: int, grid: Size) -> Architecture:
    """The architecture that the tensors' own lengths tell."""
    return Architecture(
        trained_size=(grid[0] * patch, grid[1] * patch),
        patch=patch,
        width=parts.size("cls", -1),
        depth=parts.depth(),
        heads=heads,
        mlp_width=parts.size("blocks.0.fc1.bias", 0),
        classes=parts.size("head.bias", 0),
        prefix_tokens=sum(parts.size(token, 1) for token in TOKENS if token in parts.tensors),
        distilled="head_dist.bias" in parts.tensors,
    )


def expected_shapes(parts: Parts, arch: Architecture) -> dict[str, Shape]:
    """The shape of each part in PyTorch's convention: Linear (out, in), Conv (out, in, height, width).

    Raises CheckpointError where the architecture itself is impossible.
    """
    if min(arch.patch, arch.heads, arch.classes) < 1 or min(arch.grid) < 1 or arch.width % arch.heads:
        raise CheckpointError(
            f"{parts.path} describes no ViT: patch {arch.patch}, trained size {arch.trained_size}, "
            f"{arch.classes} classes, width {arch.width} shared among {arch.heads} heads."
        )
    width, mlp, classes, patch = arch.width, arch.mlp_width, arch.classes, arch.patch
    patches = math.prod(arch.grid)
    prefixed = parts.size("pos", 1) != patches
    weights: dict[str, Shape] = {
        "patch_embed": (width, 3, patch, patch),
        "norm": (width,),
        "head": (classes, width),
        "head_dist": (classes, width),
        "norm1": (width,),
        "norm2": (width,),
        "qkv": (3 * width, width),
        **dict.fromkeys(("query", "key", "value", "proj"), (width, width)),
        "fc1": (mlp, width),
        "fc2": (width, mlp),
    }
    shapes: dict[str, Shape] = {f"{module}.weight": shape for module, shape in weights.items()}
    shapes |= {f"{module}.bias": shape[:1] for module, shape in weights.items()}
    shapes |= {"gamma1": (width,), "gamma2": (width,), "cls": (1, 1, width), "dist": (1, 1, width)}
    shapes["registers"] = (1, arch.prefix_tokens - 1 - ("dist" in parts.tensors), width)
    shapes["pos"] = (1, patches + arch.prefix_tokens * prefixed, width)
    return {part: shapes[re.sub(r"^blocks\.\d+\.", "", part)] for part in parts.tensors}


def check_shapes(parts: Parts, expected: Mapping[str, Shape]) -> None:
    """Raises CheckpointError listing every tensor whose shape is not the architecture's."""
    wrong = [
        f"{parts.names[part]} (expected {shape}, found {tuple(parts.tensors[part].shape)})"
        for part, shape in expected.items()
        if tuple(parts.tensors[part].shape) != shape
    ]
    if wrong:
        raise CheckpointError(f"{parts.path}: {describe('misshapen', wrong)[0]}.")


def assemble(parts: Parts, arch: Architecture) -> dict[str, Tensor]:
    """The model's state: positions folded into the prefix, q, k and v joined, LayerScale folded.

    The parts' shapes have been checked.
    """
    state = dict(parts.tensors)
    state["prefix"], state["positions"] = split_positions(state, arch)
    for i in range(arch.depth):
        join_qkv(state, f"blocks.{i}.", arch.width)
        fold_layer_scale(state, f"blocks.{i}.gamma1", f"blocks.{i}.proj")
        fold_layer_scale(state, f"blocks.{i}.gamma2", f"blocks.{i}.fc2")
    return {name: tensor.contiguous() for name, tensor in state.items()}


def split_positions(state: dict[str, Tensor], arch: Architecture) -> tuple[Tensor, Tensor]:
    """(prefix tokens, width) with their own positions added, and (rows, columns, width); takes the pieces."""
    prefix = torch.cat([state.pop(token) for token in TOKENS if token in state], dim=1)[0]
    positions = state.pop("pos")[0]
    own = len(positions) - math.prod(arch.grid)
    if own:
        prefix = prefix + positions[:own]
    return prefix, positions[own:].reshape(*arch.grid, arch.width)


def join_qkv(state: dict[str, Tensor], block: str, width: int) -> None:
    """Query, key and value under one name, in that order; without a bias its effect, zeros."""
    for leaf in ("weight", "bias"):
        if f"{block}query.{leaf}" in state:
            pieces = [state.pop(f"{block}{piece}.{leaf}") for piece in ("query", "key", "value")]
            state[f"{block}qkv.{leaf}"] = torch.cat(pieces)
    state.setdefault(f"{block}qkv.bias", torch.zeros(3 * width))


def fold_layer_scale(state: dict[str, Tensor], gamma: str, linear: str) -> None:
    """gamma * (W x + b) as one Linear: (gamma W) x + gamma b (Touvron et al. 2021, CaiT, eq. 1)."""
    if gamma in state:
        scale = state.pop(gamma)
        state[f"{linear}.weight"] = scale[:, None] * state[f"{linear}.weight"]
        state[f"{linear}.bias"] = scale * state[f"{linear}.bias"]


def squash_preprocess(size: Size) -> Preprocess:
    """The preprocessing of files that state none: squash to the trained size, bilinear, [-1, 1].

    That of the official JAX models (vision_transformer/vit_jax) and of the ports that load their files.
    """
    half = (0.5, 0.5, 0.5)
    return Preprocess(input_size=size, resize=size, interpolation="bilinear", mean=half, std=half)
