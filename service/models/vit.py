"""The Vision Transformer (Dosovitskiy et al. 2021), pre-norm, with capture as an argument of forward.

One parameter layout for every checkpoint format (`weights/` maps to it):

    patch_embed.{weight,bias}       (width, 3, patch, patch)
    prefix                          (prefix tokens, width): CLS, distillation, registers, each with
                                    the position embedding it was trained with already added
    positions                       (rows, columns, width): the patches' position embeddings
    blocks.{i}.norm1, norm2, norm   LayerNorm
    blocks.{i}.qkv.{weight,bias}    (3 * width, width): queries, keys, values
    blocks.{i}.proj, fc1, fc2       Linear
    head, head_dist                 Linear on token 0, and on token 1 where distilled
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from service.models.attention import attend
from service.models.spec import Architecture
from service.types import Capture, Size, Trace

Images = Float[Tensor, "batch 3 height width"]
Tokens = Float[Tensor, "batch token channel"]
Kept = Float[Tensor, "batch kept channel"]
Captured = Float[Tensor, "batch ..."] | None


class VisionTransformer(nn.Module):
    """Pixels in, a Trace out."""

    captures = frozenset(Capture)

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.arch = arch
        self.patch_embed = nn.Conv2d(3, arch.width, arch.patch, stride=arch.patch)
        self.prefix = nn.Parameter(torch.zeros(arch.prefix_tokens, arch.width))
        self.positions = nn.Parameter(torch.zeros(*arch.grid, arch.width))
        self.blocks = nn.ModuleList(Block(arch) for _ in range(arch.depth))
        self.norm = nn.LayerNorm(arch.width, eps=arch.norm_eps)
        self.head = nn.Linear(arch.width, arch.classes)
        self.head_dist = nn.Linear(arch.width, arch.classes) if arch.distilled else None

    def forward(self, pixels: Images, capture: Capture = Capture.NONE) -> Trace:
        """Logits, and the attention that `capture` names. Height and width: multiples of the patch."""
        grid = self.grid(pixels)
        tokens, attention = self.encode(self.embed(pixels), capture, keep=self.arch.prefix_tokens)
        return Trace(self.classify(tokens).float(), attention, self.arch.prefix_tokens, grid)

    def grid(self, pixels: Images) -> Size:
        """(rows, columns) of patches that these pixels are cut into."""
        height, width = pixels.shape[-2:]
        return height // self.arch.patch, width // self.arch.patch

    def embed(self, pixels: Images) -> Tokens:
        """Prefix tokens, then one token a patch in reading order, positions added."""
        patches = self.patch_embed(pixels).flatten(2).transpose(1, 2)  # (B, h * w, D)
        positions = resample_positions(self.positions, self.grid(pixels), self.arch.position_interpolation)
        prefix = self.prefix.expand(len(pixels), -1, -1)
        return torch.cat([prefix, patches + positions.flatten(0, 1)], dim=1)

    def encode(self, tokens: Tokens, capture: Capture, keep: int | None = None) -> tuple[Kept, Captured]:
        """Every block and the final norm; what the blocks captured is stacked along axis 1.

        keep: how many tokens, from the first, are wanted; the last block computes no others beyond its
            attention. None: all.
        """
        captured = []
        for i, block in enumerate(self.blocks, start=1):
            tokens, weights = block(tokens, capture, keep if i == len(self.blocks) else None)
            if weights is not None:
                captured.append(weights)
        return self.norm(tokens), torch.stack(captured, dim=1) if captured else None

    def classify(self, tokens: Kept) -> Float[Tensor, "batch classes"]:
        """The head on the CLS token; with distillation, the mean of both heads (DeiT, section 4)."""
        logits: Tensor = self.head(tokens[:, 0])
        if self.head_dist is not None:
            logits = (logits + self.head_dist(tokens[:, 1])) / 2
        return logits


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.heads = arch.heads
        self.norm1 = nn.LayerNorm(arch.width, eps=arch.norm_eps)
        self.qkv = nn.Linear(arch.width, 3 * arch.width)
        self.proj = nn.Linear(arch.width, arch.width)
        self.norm2 = nn.LayerNorm(arch.width, eps=arch.norm_eps)
        self.fc1 = nn.Linear(arch.width, arch.mlp_width)
        self.fc2 = nn.Linear(arch.mlp_width, arch.width)

    def forward(self, x: Tokens, capture: Capture, keep: int | None = None) -> tuple[Kept, Captured]:
        """The first `keep` tokens after this block, and the part of its attention that `capture` names."""
        batch, count, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, count, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, N, D / heads)
        attended, weights = attend(q, k, v, capture)
        attended = attended.transpose(1, 2).reshape(batch, count, width)
        x = x[:, :keep] + self.proj(attended[:, :keep])
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x)))), weights


def resample_positions(
    positions: Float[Tensor, "rows columns channel"], grid: Size, interpolation: str
) -> Float[Tensor, "new_rows new_columns channel"]:
    """Position embeddings for another patch grid, bicubic (float32), as the checkpoint's library does it."""
    if grid == tuple(positions.shape[:2]):
        return positions
    resampled = F.interpolate(
        positions.float().permute(2, 0, 1)[None],
        size=grid,
        mode="bicubic",
        antialias=interpolation == "bicubic_antialias",
    )
    return resampled[0].permute(1, 2, 0).to(positions.dtype)
