"""A forward pass for CUDA: images staged while they are copied, and one recorded graph for each batch size.

Launching a ViT's few hundred kernels from Python takes longer than a card needs to compute a small batch, so
each (capture, bucket) is recorded once as a CUDA graph and replayed. Batches are padded to the next bucket.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from service.types import Capture, Pixels, Trace

WARM_UP = 3
"""Runs before a graph is recorded: libraries choose their kernels in the first ones."""

Staged = Float[Tensor, "bucket 3 height width"]


@dataclass(frozen=True)
class Recorded:
    """A graph of one capture and one bucket: its inputs on the device, and what runs it."""

    pixels: Staged
    replay: Callable[[], Trace]


class CudaForward:
    """Runs a module through recorded graphs. A Trace is valid until the next forward pass.

    On a CPU, where the tests run it, everything is the same but that nothing is pinned or recorded.
    """

    runtime = "torch"

    def __init__(self, module: nn.Module, device: torch.device, dtype: torch.dtype, precision: str) -> None:
        if device.type == "cuda":
            torch.cuda.set_device(device)  # of this thread, which is the device thread
        self.module = module.to(device, dtype)
        self.device = device
        self.dtype = dtype
        self.precision = precision
        self.streams = torch.get_device_module(device)
        self.copying = self.streams.Stream()
        self.pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        self.pinned: dict[int, Staged] = {}
        self.recorded: dict[tuple[Capture, int], Recorded] = {}

    def sizes(self, max_batch: int) -> list[int]:
        """Every bucket that batches of that size and smaller fall into."""
        return [2**i for i in range(bucket(max_batch).bit_length())]

    @torch.inference_mode()
    def __call__(self, pixels: Sequence[Pixels], capture: Capture) -> Trace:
        """The Trace of these images, on the device."""
        count, size = len(pixels), bucket(len(pixels))
        key = capture, size
        if key not in self.recorded:
            self.recorded[key] = self.record(capture, size, pixels[0].shape[1:])
        graph = self.recorded[key]
        self.stage(pixels, graph.pixels)
        trace = graph.replay()
        attention = None if trace.attention is None else trace.attention[:count]
        return Trace(trace.logits[:count], attention, trace.prefix_tokens, trace.grid)

    def stage(self, pixels: Sequence[Pixels], target: Staged) -> None:
        """Copies the images to the device, each while the next one is being rounded into pinned memory.

        The device has used what was staged before: whoever asked for it waited for its logits.
        """
        host = self.pinned_memory(target)
        main = self.streams.current_stream()
        self.copying.wait_stream(main)
        with self.streams.stream(self.copying):
            for i, image in enumerate(pixels):
                host[i].copy_(torch.from_numpy(image))
                target[i].copy_(host[i], non_blocking=True)
        main.wait_stream(self.copying)

    def pinned_memory(self, target: Staged) -> Staged:
        """Host memory that the card reads by itself, shared by all graphs of a bucket."""
        size = len(target)
        if size not in self.pinned:
            pin = self.device.type == "cuda"
            self.pinned[size] = torch.empty(target.shape, dtype=target.dtype, pin_memory=pin)
        return self.pinned[size]

    def record(self, capture: Capture, size: int, image: Sequence[int]) -> Recorded:
        """Makes the graph of one capture and bucket, on blank images."""
        pixels = torch.zeros(size, 3, *image, dtype=self.dtype, device=self.device)

        def run() -> Trace:
            trace: Trace = self.module(pixels, capture)
            return trace

        if self.device.type != "cuda":
            return Recorded(pixels, run)
        aside = self.streams.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                run()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # the pool is shared: only one graph's outputs are in use at a time
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            trace = run()

        def replay() -> Trace:
            graph.replay()
            return trace

        return Recorded(pixels, replay)


def bucket(count: int) -> int:
    """The smallest power of two that holds so many images."""
    return 1 << (count - 1).bit_length()
