"""A device and the models on it: stack the jobs, run the forward pass, explain, split."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from service.engine.forward import Forward, forward_of, has_openvino, wants_openvino
from service.engine.threads import cpu_budget
from service.errors import ServiceError
from service.settings import Precision, Runtime
from service.store.manifest import Manifest
from service.types import Capture, Explainer, Job, Outcome, Pixels, Trace


class DeviceError(ServiceError):
    """The device asked for is not there, or can't compute in the precision asked for."""

    type, title = "device", "No such device"


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to run.

    captures: what its family can capture.
    device, precision: where and in what it computes ("cuda:0", "bf16").
    """

    manifest: Manifest
    forward: Forward
    captures: frozenset[Capture]
    device: str
    precision: str


class Runner:
    """Runs batches on one device, in one precision. Used by the device thread alone.

    threads: CPU threads of a forward pass; 0 is the CPUs that this process may use.
    """

    def __init__(
        self, device: str, precision: Precision, runtime: Runtime = "auto", threads: int = 0
    ) -> None:
        if runtime == "openvino" and not has_openvino():
            raise DeviceError("OpenVINO is not installed: pip install openvino, or use --runtime torch.")
        self.device = choose_device(device)
        self.precision = choose_precision(self.device, precision, runtime)
        self.runtime = runtime
        self.threads = threads or cpu_budget()

    @property
    def torch_threads(self) -> int:
        """Threads for torch: one where it only explains, since others spin for milliseconds after a use."""
        only_explains = self.device.type == "cpu" and wants_openvino(self.runtime)
        return 1 if only_explains else self.threads

    def load(self, manifest: Manifest, module: nn.Module) -> LoadedModel:
        """Puts a model on the device, in the runner's precision, for inference only."""
        captures: frozenset[Capture] = module.captures  # type: ignore[assignment]
        module = module.eval().requires_grad_(False)
        input_size = manifest.preprocessing.input_size
        forward = forward_of(module, input_size, self.device, self.precision, self.runtime, self.threads)
        return LoadedModel(manifest, forward, captures, str(self.device), forward.precision)

    def warm_up(self, model: LoadedModel, max_batch: int) -> None:
        """A forward pass of each kind of request, so that no user pays for first-call work."""
        blank: Pixels = np.zeros((3, *model.manifest.preprocessing.input_size), np.float32)
        for capture in (Capture.NONE, Capture.CLS_ROWS, Capture.FUSED_MEAN):
            if capture in model.captures:
                for size in model.forward.sizes(max_batch):
                    model.forward([blank] * size, capture)

    @torch.inference_mode()
    def run(self, model: LoadedModel, jobs: Sequence[Job], started: float) -> list[Outcome]:
        """Computes jobs that share a batch key; one Outcome a job, in their order.

        started: when the batch was cut, on the clock that the jobs were submitted on.
        """
        begin = time.perf_counter()
        trace = model.forward([job.pixels for job in jobs], jobs[0].capture)
        logits = trace.logits.cpu().numpy()
        forward_done = time.perf_counter()
        maps = explain(trace, [job.explainer for job in jobs])
        model_s, explain_s = forward_done - begin, time.perf_counter() - forward_done
        return [
            Outcome(logits[i], maps[i], started - job.submitted, model_s, explain_s)
            for i, job in enumerate(jobs)
        ]


def explain(trace: Trace, explainers: Sequence[Explainer | None]) -> list[np.ndarray[Any, Any] | None]:
    """Each image's maps on the host; images with equal explainers are explained together."""
    maps: list[np.ndarray[Any, Any] | None] = [None] * len(explainers)
    together: dict[Explainer, list[int]] = defaultdict(list)
    for i, explainer in enumerate(explainers):
        if explainer is not None:
            together[explainer].append(i)
    for explainer, indices in together.items():
        explained = explainer(select(trace, indices)).cpu().numpy()
        for i, image_maps in zip(indices, explained, strict=True):
            maps[i] = image_maps
    return maps


def select(trace: Trace, indices: list[int]) -> Trace:
    """The Trace of some images of the batch; the whole Trace is handed on without a copy."""
    if len(indices) == len(trace.logits):
        return trace
    attention = None if trace.attention is None else trace.attention[indices]
    return Trace(trace.logits[indices], attention, trace.prefix_tokens, trace.grid)


def choose_device(name: str) -> torch.device:
    """The device that "auto", "cpu", "cuda" or "cuda:N" means here. Raises DeviceError."""
    cards = torch.cuda.device_count()
    if name == "auto":
        name = "cuda" if cards else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= cards:
        raise DeviceError(
            f"There is no {name} here: torch sees {cards} CUDA devices. Use --device cpu or auto."
        )
    return device


def choose_precision(device: torch.device, precision: Precision, runtime: Runtime) -> str:
    """What a model is computed in. "auto": the fastest that keeps labels and maps (tests/test_precision.py).

    int8 where OpenVINO runs on a CPU that multiplies both bf16 and int8 natively; bf16 where that is native;
    else fp32. Raises DeviceError for what this device can't compute in.
    """
    if device.type == "cuda":
        if precision == "int8":
            raise DeviceError("int8 is for CPUs; on a CUDA device use --precision auto, bf16, fp16 or fp32.")
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return precision if precision != "auto" else "bf16" if native else "fp32"
    if precision == "fp16":
        raise DeviceError("fp16 is for CUDA devices; on a CPU use --precision auto, int8, bf16 or fp32.")
    cpu = torch.cpu.get_capabilities()
    can_int8 = wants_openvino(runtime) and cpu.get("avx512_vnni", False)
    if precision == "int8" and not can_int8:
        raise DeviceError(
            "int8 needs OpenVINO (pip install openvino) and a CPU with AVX512-VNNI; use --precision auto, "
            "bf16 or fp32."
        )
    if precision != "auto":
        return precision
    if cpu.get("amx_bf16"):
        return "bf16"  # in tiles, against which these int8 products were never measured
    if cpu.get("avx512_bf16"):
        return "int8" if can_int8 else "bf16"
    return "fp32"
