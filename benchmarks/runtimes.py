"""transformers' ViT under onnxruntime and OpenVINO, logits only: the fastest that a user finds for a CPU."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.models import transformers_vit
from service.engine.threads import cpu_budget

Infer = Callable[[np.ndarray], object]


class Logits(nn.Module):
    """Tensors in, a tensor out, as exporters want it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(pixels).logits


class OnnxRuntime:
    """Exported once, for any batch size; its threads stop spinning after each run."""

    def __init__(self, model: str) -> None:
        self.model = model

    def __call__(self, pixels: np.ndarray) -> Infer:
        name = self.session.get_inputs()[0].name
        return lambda batch: self.session.run(None, {name: batch})

    @cached_property
    def session(self):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = cpu_budget()
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = 3
        with tempfile.TemporaryDirectory() as folder, quiet():
            path = Path(folder) / "vit.onnx"
            torch.onnx.export(
                Logits(transformers_vit(self.model, "sdpa")).eval(),
                (torch.zeros(2, 3, 224, 224),),
                path,
                dynamo=True,
                dynamic_shapes={"pixels": {0: torch.export.Dim("batch")}},
                verbose=False,
            )
            return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class OpenVino:
    """Converted once, compiled for each batch size and precision (f32 or bf16), for latency."""

    def __init__(self, model: str) -> None:
        self.model = model

    def __call__(self, pixels: np.ndarray, precision: str) -> Infer:
        import openvino

        graph = self.graph.clone()
        graph.reshape(list(pixels.shape))
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": cpu_budget(),
        }
        request = openvino.Core().compile_model(graph, "CPU", options).create_infer_request()
        return lambda batch: request.infer([batch], share_inputs=True, share_outputs=True)

    @cached_property
    def graph(self):
        import openvino

        model = Logits(transformers_vit(self.model, "sdpa")).eval()
        with torch.no_grad(), quiet():
            return openvino.convert_model(model, example_input=torch.zeros(2, 3, 224, 224))


@contextmanager
def quiet() -> Iterator[None]:
    """Exporters say much that is nobody's concern here."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
