"""What the article's script does with attention and pictures: whole matrix products, cv2."""

from __future__ import annotations

import base64
import io

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor


def read(data: bytes) -> Image.Image:
    """Bytes to RGB."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def answer(
    task: str, size: tuple[int, int], logits: Tensor, attentions: list[Tensor], names: dict[int, str]
) -> dict:
    """The JSON of one image. size: (width, height); attentions: (heads, N, N) a block."""
    body: dict = {"labels": labels(logits, names)}
    if task == "rollout":
        body["mask"] = png(mask(joint(attentions)[-1], size))
    if task == "blocks":
        body["canvas"] = png(np.hstack([panel(matrix, size) for matrix in normalised(attentions)]))
    return body


def labels(logits: Tensor, names: dict[int, str], top_k: int = 5) -> list[dict]:
    """The likeliest classes."""
    scores, indices = logits.float().softmax(-1).topk(top_k)
    return [
        {"index": index, "label": names[index], "score": score}
        for index, score in zip(indices.tolist(), scores.tolist(), strict=True)
    ]


def normalised(attentions: list[Tensor]) -> Tensor:
    """Mean over heads, plus the identity for the residual, rows summing to 1: (blocks, N, N)."""
    mean = torch.stack(attentions).float().mean(dim=1)
    mean = mean + torch.eye(mean.shape[-1])
    return mean / mean.sum(dim=-1, keepdim=True)


def joint(attentions: list[Tensor]) -> Tensor:
    """The products of the matrices up to each block."""
    matrices = normalised(attentions)
    products = [matrices[0]]
    for matrix in matrices[1:]:
        products.append(matrix @ products[-1])
    return torch.stack(products)


def mask(matrix: Tensor, size: tuple[int, int]) -> np.ndarray:
    """The CLS row over the patches, over its maximum, at the picture's size; 8-bit."""
    row = matrix[0, 1:]
    side = int(row.numel() ** 0.5)
    grid = row.reshape(side, side).numpy()
    return (cv2.resize(grid / grid.max(), size) * 255).astype(np.uint8)


def panel(matrix: Tensor, size: tuple[int, int]) -> np.ndarray:
    """A block's mask in JET colours."""
    return cv2.applyColorMap(mask(matrix, size), cv2.COLORMAP_JET)


def png(pixels: np.ndarray) -> str:
    """Base64 of OpenCV's default PNG."""
    return base64.b64encode(cv2.imencode(".png", pixels)[1]).decode()
