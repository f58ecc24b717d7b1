"""What runs a forward pass: torch anywhere, or OpenVINO on a CPU, all from pixels to the same Trace."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from service.engine.cuda import CudaForward
from service.models.vit import VisionTransformer
from service.settings import Runtime
from service.types import Capture, Pixels, Size, Trace

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Forward(Protocol):
    """A model that is ready to run: the pixels of a batch, float32 on the host, to its Trace.

    runtime, precision: what computes, and in what.
    """

    runtime: str
    precision: str

    def sizes(self, max_batch: int) -> list[int]:
        """The batch sizes whose first run is slow, where batches have max_batch images at most."""
        ...

    def __call__(self, pixels: Sequence[Pixels], capture: Capture) -> Trace:
        """Logits, and the attention that `capture` names."""
        ...


class TorchForward:
    """The reference, on a CPU."""

    runtime = "torch"

    def __init__(self, module: nn.Module, precision: str) -> None:
        self.precision = precision
        self.dtype = DTYPES[precision]
        self.module = module.to(self.dtype)

    def sizes(self, max_batch: int) -> list[int]:
        """As Forward says."""
        return [1]

    @torch.inference_mode()
    def __call__(self, pixels: Sequence[Pixels], capture: Capture) -> Trace:
        """As Forward says."""
        trace: Trace = self.module(torch.from_numpy(np.stack(pixels)).to(self.dtype), capture)
        return trace


class OpenVinoForward:
    """A ViT under OpenVINO. One graph gives logits and head-mean attention, which the CLS rows are part of.

    What that graph does not hold, the other head fusions and single heads, torch computes in fp32 from
    the same parameters.

    An even batch is computed as two halves side by side, each on half of the threads: where all threads share
    every layer, each layer ends when the last of them is done, and one that anything else holds up holds up
    all. In fp32 that gains little and its second copy of the weights is large: there a batch stays whole.
    """

    runtime = "openvino"

    def __init__(self, module: VisionTransformer, input_size: Size, precision: str, threads: int) -> None:
        import openvino

        from service.models.vit_graph import build_graph, quantization_group

        self.precision = precision
        self.threads = threads
        self.tensor = openvino.Tensor
        self.torch = TorchForward(module, "fp32")
        self.prefix_tokens = module.arch.prefix_tokens
        self.grid = input_size[0] // module.arch.patch, input_size[1] // module.arch.patch
        graph = build_graph(module, input_size, precision)
        options = {
            "INFERENCE_PRECISION_HINT": "f32" if precision == "fp32" else "bf16",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": quantization_group(module.arch.width),
            "INFERENCE_NUM_THREADS": threads,
        }

        def requests(count: int) -> list[openvino.InferRequest]:
            """That many, which share the threads evenly."""
            compiled = openvino.Core().compile_model(graph, "CPU", {**options, "NUM_STREAMS": count})
            return [compiled.create_infer_request() for _ in range(count)]

        self.whole = requests(1)
        self.halves = requests(2) if precision != "fp32" and threads % 2 == 0 else []
        tokens = self.prefix_tokens + self.grid[0] * self.grid[1]
        self.attention = np.empty((0, module.arch.depth, tokens, tokens), np.float32)

    def sizes(self, max_batch: int) -> list[int]:
        """As Forward says."""
        return [1, 2] if self.halves else [1]

    def __call__(self, pixels: Sequence[Pixels], capture: Capture) -> Trace:
        """As Forward says; attention is valid until the next forward pass."""
        if capture not in (Capture.NONE, Capture.CLS_ROWS, Capture.FUSED_MEAN):
            with torch_threads(self.threads):
                return self.torch(pixels, capture)
        count = len(pixels)
        if len(self.attention) < count:
            self.attention = np.empty((count, *self.attention.shape[1:]), np.float32)
        requests = self.halves if self.halves and count % 2 == 0 else self.whole
        each = count // len(requests)
        with ExitStack() as waiting:  # for every part, also where one fails
            for i, request in enumerate(requests):
                part = slice(i * each, (i + 1) * each)
                request.set_output_tensor(1, self.tensor(self.attention[part], shared_memory=True))
                request.start_async([np.stack(pixels[part])], share_inputs=True)
                waiting.callback(request.wait)
        logits = torch.cat([torch.from_numpy(request.get_output_tensor(0).data) for request in requests])
        attention = captured(torch.from_numpy(self.attention[:count]), capture)
        return Trace(logits, attention, self.prefix_tokens, self.grid)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Lets torch compute on so many threads inside the with block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def captured(attention: Float[Tensor, "batch block token token"], capture: Capture) -> Tensor | None:
    """The part of the head-mean attention that `capture` names."""
    if capture is Capture.NONE:
        return None
    return attention[:, :, 0] if capture is Capture.CLS_ROWS else attention


def forward_of(
    module: nn.Module, input_size: Size, device: torch.device, precision: str, runtime: Runtime, threads: int
) -> Forward:
    """The fastest way to run this module on that device: OpenVINO for a ViT on a CPU where it is installed.

    What OpenVINO would compute in int8, torch computes in bf16.
    """
    if device.type == "cuda":
        return CudaForward(module, device, DTYPES[precision], precision)
    if isinstance(module, VisionTransformer) and wants_openvino(runtime):
        return OpenVinoForward(module, input_size, precision, threads)
    return TorchForward(module, "bf16" if precision == "int8" else precision)


def wants_openvino(runtime: Runtime) -> bool:
    """Whether a ViT on a CPU runs under OpenVINO."""
    return runtime != "torch" and has_openvino()


def has_openvino() -> bool:
    """Whether the optional runtime is installed."""
    return importlib.util.find_spec("openvino") is not None
