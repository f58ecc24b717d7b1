"""The ViT of vit.py as an OpenVINO graph: the same parameters and arithmetic for a faster CPU runtime.

On CPUs that runtime multiplies faster than torch, and the head-mean of every block's attention costs nothing
that can be measured beside it: one graph answers every capture that follows from it.
"""

from __future__ import annotations

import numpy as np
import openvino
import openvino.opset13 as op
from numpy.typing import NDArray
from openvino import Model, Node

from service.models.vit import VisionTransformer, resample_positions
from service.types import Size


def build_graph(vit: VisionTransformer, input_size: Size) -> Model:
    """The graph: pixels (batch, 3, *input_size) to logits and to attention (batch, L, N, N), mean over heads.

    The graph's constants are the module's own memory.
    """
    return Graph(vit, input_size).model()


class Graph:
    """Builds the graph of one ViT at one input size; methods mirror those of VisionTransformer and Block."""

    def __init__(self, vit: VisionTransformer, input_size: Size) -> None:
        self.arch = vit.arch
        self.input_size = input_size
        self.state = {name: tensor.numpy() for name, tensor in vit.state_dict().items()}
        grid = input_size[0] // vit.arch.patch, input_size[1] // vit.arch.patch
        positions = resample_positions(vit.positions, grid, vit.arch.position_interpolation)
        self.positions = positions.flatten(0, 1)[None].numpy()  # (1, h * w, D)

    def model(self) -> Model:
        """Pixels in, logits and attention out."""
        pixels = op.parameter([-1, 3, *self.input_size], np.float32, name="pixels")
        tokens = self.embed(pixels)
        attention = []
        for i in range(self.arch.depth):
            last = i == self.arch.depth - 1  # of which the heads read the prefix tokens alone
            tokens, weights = self.block(f"blocks.{i}.", tokens, self.arch.prefix_tokens if last else None)
            attention.append(op.unsqueeze(op.reduce_mean(weights, whole(1)), whole(1)))  # over heads
        logits = self.classify(self.norm("norm", tokens))
        return openvino.Model([logits, op.concat(attention, 1)], [pixels], "vit")

    def embed(self, pixels: Node) -> Node:
        """Prefix tokens, then one token a patch in reading order, positions added: (batch, N, D)."""
        patch = self.arch.patch
        kernel = constant(self.state["patch_embed.weight"])
        patches = op.convolution(pixels, kernel, [patch, patch], [0, 0], [0, 0], [1, 1])
        patches = op.transpose(op.reshape(patches, whole(0, 0, -1), special_zero=True), whole(0, 2, 1))
        patches = op.add(patches, constant(self.state["patch_embed.bias"] + self.positions))
        batch = op.gather(op.shape_of(pixels), whole(0), whole(0))
        shape = op.concat([batch, whole(self.arch.prefix_tokens, self.arch.width)], 0)
        return op.concat([op.broadcast(constant(self.state["prefix"][None]), shape), patches], 1)

    def block(self, name: str, x: Node, keep: int | None) -> tuple[Node, Node]:
        """The first `keep` tokens after a block, and its attention (batch, heads, N, N)."""
        heads, width = self.arch.heads, self.arch.width
        channels = width // heads
        qkv = self.linear(f"{name}qkv", self.norm(f"{name}norm1", x))
        qkv = op.transpose(
            op.reshape(qkv, whole(0, 0, 3, heads, channels), special_zero=True), whole(2, 0, 3, 1, 4)
        )
        q, k, v = (op.squeeze(part, whole(0)) for part in op.split(qkv, op.constant(0), 3).outputs())
        scores = op.matmul(op.multiply(q, constant(np.float32(channels**-0.5))), k, False, True)
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
            logits = op.multiply(both, constant(np.float32(0.5)))
        return logits

    def token(self, tokens: Node, index: int) -> Node:
        """One token of each image: (batch, D)."""
        return op.squeeze(op.gather(tokens, whole(index), whole(1)), whole(1))

    def linear(self, name: str, x: Node) -> Node:
        """W x + b."""
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return op.add(op.matmul(x, constant(weight), False, True), constant(bias))

    def norm(self, name: str, x: Node) -> Node:
        """LayerNorm over the last axis."""
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        normal = op.mvn(x, whole(-1), True, self.arch.norm_eps, "inside_sqrt")
        return op.add(op.multiply(normal, constant(weight)), constant(bias))


def constant(value: NDArray[np.float32] | np.float32) -> Node:
    """A constant that shares the array's memory, and keeps it alive."""
    return op.constant(np.ascontiguousarray(value), shared_memory=True)


def first(x: Node, count: int, axis: int) -> Node:
    """The first `count` entries along an axis."""
    return op.slice(x, whole(0), whole(count), whole(1), whole(axis))


def whole(*values: int) -> Node:
    """Whole numbers: axes, indices, shapes."""
    return op.constant(np.array(values, np.int64))
