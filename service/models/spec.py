"""What a Vision Transformer's shape is called: the table behind names such as "B/16"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from service.types import Size

PositionInterpolation = Literal["bicubic", "bicubic_antialias"]


@dataclass(frozen=True)
class Architecture:
    """The shape of a ViT, as its checkpoint states it.

    trained_size: (height, width) in pixels that the position embeddings were trained at.
    patch: side of a square patch, pixels.
    prefix_tokens: tokens before the patches: CLS first, then distillation or registers.
    distilled: a second head reads token 1, and the logits are the mean of both (DeiT).
    norm_eps: added to LayerNorm's variance: 1e-6 in JAX and timm, 1e-12 in Hugging Face's ViT.
    position_interpolation: how positions are resampled for another input size: "bicubic" as
        transformers does it, "bicubic_antialias" as timm does it.
    """

    trained_size: Size
    patch: int
    width: int
    depth: int
    heads: int
    mlp_width: int
    classes: int
    prefix_tokens: int = 1
    distilled: bool = False
    norm_eps: float = 1e-6
    position_interpolation: PositionInterpolation = "bicubic_antialias"

    @property
    def grid(self) -> Size:
        """(rows, columns) of the patch grid at the trained size."""
        return self.trained_size[0] // self.patch, self.trained_size[1] // self.patch


# name -> width, depth, heads, MLP width (Dosovitskiy et al. 2021, table 1; Ti and S: Touvron et al. 2021)
VARIANTS = {
    "Ti": (192, 12, 3, 768),
    "S": (384, 12, 6, 1536),
    "B": (768, 12, 12, 3072),
    "L": (1024, 24, 16, 4096),
    "H": (1280, 32, 16, 5120),
}


def architecture(name: str, size: int = 224, classes: int = 1000) -> Architecture:
    """The architecture that a name such as "B/16" stands for, at a square input size in pixels.

    Raises ValueError for a name that is not VARIANT/PATCH.
    """
    variant, _, patch = name.partition("/")
    if variant not in VARIANTS or not patch.isdigit():
        raise ValueError(f"{name!r} is not VARIANT/PATCH, with a variant of {', '.join(VARIANTS)}")
    width, depth, heads, mlp_width = VARIANTS[variant]
    return Architecture((size, size), int(patch), width, depth, heads, mlp_width, classes)
