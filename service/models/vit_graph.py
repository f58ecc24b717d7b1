"""The ViT of vit.py as an OpenVINO graph: the same parameters and arithmetic for a faster CPU runtime.

On CPUs that runtime multiplies faster than torch, and the head-mean of every block's attention costs next to
nothing beside it: one graph answers every capture that follows from it.

fp32 is exact. In bf16 every tensor between pixels and outputs is bf16: left to itself the runtime would keep
each softmax in float32, and copy it twice. In int8 the blocks' linear layers multiply whole numbers: weights
are rounded here, one scale an output channel; the runtime rounds their inputs as they come, one scale for
each `quantization_group` of a token's channels, so that an outlier coarsens no more than its own group.
Layers whose inputs don't divide into groups stay in bf16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino
import openvino.opset13 as op
import torch
from numpy.typing import NDArray
from openvino import Model, Node, Type

from service.models.vit import VisionTransformer, resample_positions
from service.types import Size


def build_graph(vit: VisionTransformer, input_size: Size, precision: str) -> Model:
    """The graph: pixels (batch, 3, *input_size) to logits and to attention (batch, L, N, N), mean over heads.

    All three are float32; precision, "fp32", "bf16" or "int8", is that of what lies between. The graph's
    constants are the module's own memory where nothing is rounded.
    """
    return Graph(vit, input_size, precision).model()


def quantization_group(width: int) -> int:
    """How many channels of a token share a scale in int8: finer is slower, coarser less exact."""
    return 128 if width % 128 == 0 else 64


class Graph:
    """Builds the graph of one ViT at one input size; methods mirror those of VisionTransformer and Block."""

    def __init__(self, vit: VisionTransformer, input_size: Size, precision: str) -> None:
        self.arch = vit.arch
        self.input_size = input_size
        self.type = Type.f32 if precision == "fp32" else Type.bf16
        self.group = quantization_group(vit.arch.width) if precision == "int8" else None
        self.state = {name: tensor.numpy() for name, tensor in vit.state_dict().items()}
        grid = input_size[0] // vit.arch.patch, input_size[1] // vit.arch.patch
        positions = resample_positions(vit.positions, grid, vit.arch.position_interpolation)
        self.positions = positions.flatten(0, 1)[None].numpy()  # (1, h * w, D)

    def model(self) -> Model:
        """Pixels in, logits and attention out."""
        pixels = op.parameter([-1, 3, *self.input_size], np.float32, name="pixels")
        tokens = self.embed(op.convert(pixels, self.type))
        attention = []
        for i in range(self.arch.depth):
            last = i == self.arch.depth - 1  # of which the heads read the prefix tokens alone
            tokens, weights = self.block(f"blocks.{i}.", tokens, self.arch.prefix_tokens if last else None)
            attention.append(op.unsqueeze(op.reduce_mean(weights, whole(1)), whole(1)))  # over heads
        logits = self.classify(self.norm("norm", tokens))
        outputs = [op.convert(output, Type.f32) for output in (logits, op.concat(attention, 1))]
        return openvino.Model(outputs, [pixels], "vit")

    def embed(self, pixels: Node) -> Node:
        """Prefix tokens, then one token a patch in reading order, positions added: (batch, N, D)."""
        patch = self.arch.patch
        kernel = self.constant(self.state["patch_embed.weight"])
        patches = op.convolution(pixels, kernel, [patch, patch], [0, 0], [0, 0], [1, 1])
        patches = op.transpose(op.reshape(patches, whole(0, 0, -1), special_zero=True), whole(0, 2, 1))
        patches = op.add(patches, self.constant(self.state["patch_embed.bias"] + self.positions))
        batch = op.gather(op.shape_of(pixels), whole(0), whole(0))
        shape = op.concat([batch, whole(self.arch.prefix_tokens, self.arch.width)], 0)
        return op.concat([op.broadcast(self.constant(self.state["prefix"][None]), shape), patches], 1)

    def block(self, name: str, x: Node, keep: int | None) -> tuple[Node, Node]:
        """The first `keep` tokens after a block, and its attention (batch, heads, N, N)."""
        heads, width = self.arch.heads, self.arch.width
        channels = width // heads
        qkv = self.linear(f"{name}qkv", self.norm(f"{name}norm1", x))
        qkv = op.transpose(
            op.reshape(qkv, whole(0, 0, 3, heads, channels), special_zero=True), whole(2, 0, 3, 1, 4)
        )
        q, k, v = (op.squeeze(part, whole(0)) for part in op.split(qkv, op.constant(0), 3).outputs())
        scores = op.matmul(op.multiply(q, self.constant(np.float32(channels**-0.5))), k, False, True)
        weights = op.softmax(scores, -1)
        queries = weights
        if keep is not None:
            x, queries = first(x, keep, axis=1), first(weights, keep, axis=2)
        attended = op.transpose(op.matmul(queries, v, False, False), whole(0, 2, 1, 3))
        x = op.add(x, self.linear(f"{name}proj", op.reshape(attended, whole(0, 0, width), special_zero=True)))
        hidden = op.gelu(self.linear(f"{name}fc1", self.norm(f"{name}norm2", x)), "erf")
        return op.add(x, self.linear(f"{name}fc2", hidden)), weights

    def classify(self, tokens: Node) -> Node:
        """The head on token 0, or the mean of both heads where distilled: (batch, classes)."""
        logits = self.linear("head", self.token(tokens, 0))
        if self.arch.distilled:
            both = op.add(logits, self.linear("head_dist", self.token(tokens, 1)))
            logits = op.multiply(both, self.constant(np.float32(0.5)))
        return logits

    def token(self, tokens: Node, index: int) -> Node:
        """One token of each image: (batch, D)."""
        return op.squeeze(op.gather(tokens, whole(index), whole(1)), whole(1))

    def linear(self, name: str, x: Node) -> Node:
        """W x + b."""
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        whole_groups = self.group is not None and weight.shape[1] % self.group == 0
        factor = self.int8(weight) if whole_groups else self.constant(weight)
        return op.add(op.matmul(x, factor, False, True), self.constant(bias))

    def norm(self, name: str, x: Node) -> Node:
        """LayerNorm over the last axis."""
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        normal = op.mvn(x, whole(-1), True, self.arch.norm_eps, "inside_sqrt")
        return op.add(op.multiply(normal, self.constant(weight)), self.constant(bias))

    def constant(self, value: NDArray[np.float32] | np.float32) -> Node:
        """A constant of the graph's type."""
        return op.convert(shared(np.ascontiguousarray(value)), self.type)

    def int8(self, weight: NDArray[np.float32]) -> Node:
        """Weights (outputs, inputs) as whole numbers of -127 to 127, times a scale for each output."""
        largest = np.abs(weight).max(1, keepdims=True)
        scale = torch.from_numpy(np.where(largest > 0, largest, 1) / 127).bfloat16().float().numpy()
        rounded = np.clip(np.rint(weight / scale), -127, 127).astype(np.int8)
        return op.multiply(op.convert(shared(rounded), self.type), self.constant(scale))


def shared(value: NDArray[Any]) -> Node:
    """A constant that shares the array's memory, and keeps it alive."""
    return op.constant(value, shared_memory=True)


def first(x: Node, count: int, axis: int) -> Node:
    """The first `count` entries along an axis."""
    return op.slice(x, whole(0), whole(count), whole(1), whole(axis))


def whole(*values: int) -> Node:
    """Whole numbers: axes, indices, shapes."""
    return op.constant(np.array(values, np.int64))
