"""The frozen dataclasses that cross rooms, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from enum import Enum
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

HeadFusion = Literal["mean", "max", "min"]
Interpolation = Literal["bilinear", "bicubic", "lanczos"]
Size = tuple[int, int]
"""(height, width)."""

RGB = UInt8[np.ndarray, "height width 3"]
Pixels = Float[np.ndarray, "3 input_height input_width"]


@dataclass(frozen=True)
class Preprocess:
    """How an upright RGB image becomes a model's pixels: resize, centre crop, normalise.

    input_size: (height, width) in pixels that the model takes; the centre crop's size.
    resize: the size before the crop: (height, width) squashes, one number is the shorter side.
    mean, std: per channel, for values scaled to 0..1.
    """

    input_size: Size
    resize: Size | int
    interpolation: Interpolation
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def resized_side(self) -> int:
        """What a side is resized to, pixels; the larger where both are told."""
        return self.resize if isinstance(self.resize, int) else max(self.resize)


@dataclass(frozen=True)
class Box:
    """The part of an upright image that a model saw, in that image's pixels (may be fractional)."""

    left: float
    top: float
    right: float
    bottom: float


class Capture(Enum):
    """Which attention a forward pass hands back beside the logits.

    L blocks, H heads, N = prefix + patch tokens; every head's row sums to 1 before fusion.
    """

    NONE = "none"
    CLS_ROWS = "cls rows"  # (batch, L, N): what the CLS token looks at, mean over heads
    FUSED_MEAN = "fused mean"  # (batch, L, N, N), fused over heads inside the block
    FUSED_MAX = "fused max"
    FUSED_MIN = "fused min"
    PER_HEAD = "per head"  # (batch, L, H, N, N)

    @classmethod
    def fused(cls, head_fusion: HeadFusion) -> Capture:
        """The N x N capture fused over heads by mean, max or min."""
        return cls(f"fused {head_fusion}")


@dataclass(frozen=True)
class Trace:
    """What one forward pass leaves behind for a batch.

    logits: before the softmax, float32.
    attention: float32, shaped as Capture says, or None for Capture.NONE.
    prefix_tokens: how many tokens (CLS, distillation, registers) stand before the patches.
    grid: (rows, columns) of the patch grid; N = prefix_tokens + rows * columns.
    """

    logits: Float[Tensor, "batch classes"]
    attention: Float[Tensor, "batch block ..."] | None
    prefix_tokens: int
    grid: Size


@runtime_checkable
class Explainer(Protocol):
    """Turns a Trace into maps. A frozen dataclass, so that equal ones can share a batch."""

    @property
    def needs(self) -> Capture:
        """The capture that the Trace must hold."""
        ...

    def __call__(self, trace: Trace) -> Float[Tensor, "batch map row column"]:
        """The maps of each image of the batch, on the patch grid, unscaled."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What the device hands back for one job, on the host.

    logits: float32, one a class.
    maps: float32, (map, row, column) on the patch grid, or None where nothing was to be explained.
    queue_s, model_s, explain_s: seconds between submission and the batch's start, in the batch's
        forward pass, and in its explanation.
    """

    logits: Float[np.ndarray, " classes"]
    maps: Float[np.ndarray, "map row column"] | None
    queue_s: float
    model_s: float
    explain_s: float


@dataclass(frozen=True)
class Job:
    """One image on its way through the device.

    model: the name of a loaded model.
    pixels: what imaging.preprocess made of the image.
    explainer: what to make of the captured attention; None for labels alone.
    submitted, deadline: seconds on the batcher's clock; past its deadline the job is not computed.
    future: gets the Outcome or a ServiceError; cancel it to drop the job before it is computed.
    """

    model: str
    pixels: Pixels
    explainer: Explainer | None
    submitted: float
    deadline: float
    future: Future[Outcome]

    @property
    def capture(self) -> Capture:
        """What the forward pass must capture for this job."""
        return Capture.NONE if self.explainer is None else self.explainer.needs

    @property
    def batch_key(self) -> tuple[str, Size, Capture]:
        """Jobs with the same key can share one forward pass: model, input size, capture."""
        height, width = self.pixels.shape[1:]
        return self.model, (height, width), self.capture


@dataclass(frozen=True)
class Label:
    """A class with its softmax probability."""

    index: int
    label: str
    score: float


@dataclass(frozen=True)
class Prediction:
    """The answer to "what is this?".

    model: the name of the model that answered.
    width, height: of the upright image, pixels.
    seen: the part of it that the model's preprocessing kept.
    labels: highest score first.
    """

    model: str
    width: int
    height: int
    seen: Box
    labels: list[Label]


@dataclass(frozen=True)
class RolloutAnswer:
    """The answer to "what did the model look at?".

    grid: the rollout on the patch grid, unscaled, float32.
    mask: PNG, 8-bit grey, the upright image's size.
    overlay: PNG, RGB, or None where none was asked for.
    """

    prediction: Prediction
    grid: Float[np.ndarray, "row column"]
    mask: bytes
    overlay: bytes | None


@dataclass(frozen=True)
class BlocksAnswer:
    """The answer to "what did each block look at?".

    grids: one map a block on the patch grid, unscaled, float32.
    canvas: PNG, JET colours as a palette, every block's panel.
    columns: panels in one row of the canvas.
    panel: (height, width) of a panel, pixels.
    scale: a panel's size over the image's.
    """

    prediction: Prediction
    grids: Float[np.ndarray, "block row column"]
    canvas: bytes
    columns: int
    panel: Size
    scale: float


Clock = Callable[[], float]
"""Seconds on a clock that never runs back (time.monotonic in production)."""
