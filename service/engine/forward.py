"""What runs a forward pass: torch anywhere, or OpenVINO on a CPU, both from pixels to the same Trace."""

from __future__ import annotations

import importlib.util
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from service.models.vit import VisionTransformer
from service.settings import Runtime
from service.types import Capture, Size, Trace

Batch = Float[np.ndarray, "batch 3 height width"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Forward(Protocol):
    """A model that is ready to run: a batch of pixels, float32 on the host, to its Trace."""

    runtime: str
    precision: str

    def __call__(self, pixels: Batch, capture: Capture) -> Trace:
        """Logits, and the attention that `capture` names."""
        ...


class TorchForward:
    """The reference, on any device."""

    runtime = "torch"

    def __init__(self, module: nn.Module, device: torch.device, precision: str) -> None:
        self.device = device
        self.precision = precision
        self.dtype = DTYPES[precision]
        self.module = module.to(device, self.dtype)

    @torch.inference_mode()
    def __call__(self, pixels: Batch, capture: Capture) -> Trace:
        """As Forward says; the Trace is on the device."""
        trace: Trace = self.module(torch.from_numpy(pixels).to(self.device, self.dtype), capture)
        return trace


class OpenVinoForward:
    """A ViT under OpenVINO. One graph gives logits and head-mean attention, which the CLS rows are part of.

    What that graph does not hold, the other head fusions and single heads, torch computes in fp32 from
    the same parameters.
    """

    runtime = "openvino"

    def __init__(self, module: VisionTransformer, input_size: Size, precision: str, threads: int) -> None:
        import openvino

        from service.models.vit_graph import build_graph, quantization_group

        self.precision = precision
        self.torch = TorchForward(module, torch.device("cpu"), "fp32")
        self.prefix_tokens = module.arch.prefix_tokens
        self.grid = input_size[0] // module.arch.patch, input_size[1] // module.arch.patch
        options = {
            "INFERENCE_PRECISION_HINT": "f32" if precision == "fp32" else "bf16",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": quantization_group(module.arch.width),
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
        }
        compiled = openvino.Core().compile_model(build_graph(module, input_size, precision), "CPU", options)
        self.request = compiled.create_infer_request()

    def __call__(self, pixels: Batch, capture: Capture) -> Trace:
        """As Forward says."""
        if capture not in (Capture.NONE, Capture.CLS_ROWS, Capture.FUSED_MEAN):
            return self.torch(pixels, capture)
        outputs = self.request.infer([pixels], share_inputs=True, share_outputs=True)
        logits, attention = (torch.from_numpy(outputs[i]) for i in range(2))
        return Trace(logits.clone(), captured(attention, capture), self.prefix_tokens, self.grid)


def captured(attention: Float[Tensor, "batch block token token"], capture: Capture) -> Tensor | None:
    """The part of the head-mean attention that `capture` names, valid until the next forward pass."""
    if capture is Capture.NONE:
        return None
    return attention[:, :, 0] if capture is Capture.CLS_ROWS else attention


def forward_of(
    module: nn.Module, input_size: Size, device: torch.device, precision: str, runtime: Runtime, threads: int
) -> Forward:
    """The fastest way to run this module: OpenVINO for a ViT on a CPU where it is installed, else torch.

    What OpenVINO would compute in int8, torch computes in bf16.
    """
    if (
        runtime != "torch"
        and device.type == "cpu"
        and isinstance(module, VisionTransformer)
        and has_openvino()
    ):
        return OpenVinoForward(module, input_size, precision, threads)
    return TorchForward(module, device, "bf16" if precision == "int8" else precision)


def has_openvino() -> bool:
    """Whether the optional runtime is installed."""
    return importlib.util.find_spec("openvino") is not None
