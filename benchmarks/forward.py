"""Part 1: forward passes, ours with and without attention, and everybody else's."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from benchmarks import matmul, models, plots, runtimes
from benchmarks.options import Options
from benchmarks.report import Part, Target
from benchmarks.samples import Samples, interleaved, median, ratio, spread
from service.engine.runner import Runner
from service.engine.threads import cpu_budget
from service.load.markdown import table
from service.models.spec import architecture
from service.store.registry import Registry
from service.types import Capture

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
CAPTURES = {
    "no capture": Capture.NONE,
    "CLS rows": Capture.CLS_ROWS,
    "fused N x N": Capture.FUSED_MEAN,
}
FLOOR = "matrix products alone"
PLOT = "forward.png"

Forward = Callable[[np.ndarray], object]
Maker = Callable[[np.ndarray], Forward]
"""Makes a case ready for pixels of one batch size."""


@dataclass
class Row:
    """One way to compute, at every batch size.

    seconds: by batch size, in the order of the rounds.
    missing: why it was not measured.
    """

    precision: str
    what: str
    make: Maker
    seconds: dict[int, list[float]] = field(default_factory=dict)
    missing: str = ""

    @property
    def name(self) -> str:
        return f"{self.precision} {self.what}"

    def per_image(self, batch: int) -> list[float]:
        """Milliseconds an image."""
        return [seconds / batch * 1000 for seconds in self.seconds.get(batch, [])]


def run(options: Options) -> Part:
    torch.set_num_threads(cpu_budget())
    with models.store(options.model) as registry:
        rows = list(cases(options, registry))
    for batch in options.batches:
        measure(rows, batch, rounds(options.repeats, batch))
    plotted = plots.forward(options.out.with_name(PLOT), options.batches, medians(rows, options.batches))
    text = "\n\n".join([intro(options), *(block(rows, options, it) for it in PRECISIONS), plotted])
    return Part(f"1. Forward passes, {options.model}", text, targets(rows))


def rounds(repeats: int, batch: int) -> int:
    """`repeats` at batch 8, more of the quick ones, and never fewer than what has a median."""
    return max(min(repeats, 3), min(repeats * 8 // batch, repeats * 4))


def cases(options: Options, registry: Registry) -> Iterator[Row]:
    """The floor, ours, and the others', for both precisions."""
    shape = architecture(options.model)
    openvino = runtimes.OpenVino(options.model)
    for precision, dtype in PRECISIONS.items():
        yield Row(precision, FLOOR, partial(floor, shape, dtype, options.device))
        for runtime in ("auto", "torch"):
            model = models.load(Runner(options.device, precision, runtime), registry)
            title = "ours" if runtime == "auto" else "ours on torch"
            for name, capture in CAPTURES.items():
                if runtime == "auto" or capture is not Capture.CLS_ROWS:
                    yield Row(precision, f"{title}, {name}", partial(ours, model.forward, capture))
        for attention in ("eager", "sdpa"):
            how = "eager, output_attentions" if attention == "eager" else "sdpa, logits only"
            peer = models.transformers_vit(options.model, attention).to(options.device, dtype)
            yield Row(precision, f"transformers {how}", partial(transformers, peer, attention == "eager"))
        if options.device == "cpu":
            make = partial(openvino, precision=precision.replace("fp", "f"))
            yield Row(precision, "OpenVINO, logits only", make)
    if options.device == "cpu":
        yield Row("fp32", "onnxruntime, logits only", runtimes.OnnxRuntime(options.model))


def floor(shape: object, dtype: torch.dtype, device: str, pixels: np.ndarray) -> Forward:
    run = matmul.products(shape, len(pixels), dtype, device)
    return lambda pixels: run()


def ours(forward: Callable[..., object], capture: Capture, pixels: np.ndarray) -> Forward:
    """As the device thread calls it; the logits come to the host, which waits for a GPU."""
    return lambda pixels: forward(pixels, capture).logits.cpu()


def transformers(model: torch.nn.Module, attentions: bool, pixels: np.ndarray) -> Forward:
    weight = next(model.parameters())

    @torch.inference_mode()
    def forward(pixels: np.ndarray) -> object:
        batch = torch.from_numpy(pixels).to(weight.device, weight.dtype)
        return model(batch, output_attentions=attentions).logits.float().cpu()

    return forward


def measure(rows: list[Row], batch: int, rounds: int) -> None:
    """Adds one batch size's seconds to each row that can be made."""
    print(f"  batch {batch}, {rounds} rounds", file=sys.stderr)
    pixels = np.random.default_rng(0).normal(size=(batch, 3, 224, 224)).astype(np.float32)
    calls: dict[str, Callable[[], object]] = {}
    for row in rows:
        if row.missing:
            continue
        try:
            calls[row.name] = partial(row.make(pixels), pixels)
        except Exception as error:
            row.missing = f"{type(error).__name__}: {error}".splitlines()[0][:120]
    samples: Samples = interleaved(calls, rounds)
    for row in rows:
        if row.name in samples:
            row.seconds[batch] = samples[row.name]


def intro(options: Options) -> str:
    return (
        f"Milliseconds an image on {options.device}, {cpu_budget()} threads: median (quartiles), and how "
        "many times OpenVINO's logits-only pass at the same precision that is, paired round by round. "
        "*Matrix products alone* are the qkv, proj, fc1 and fc2 products of all blocks, prepacked by oneDNN."
    )


def block(rows: list[Row], options: Options, precision: str) -> str:
    """The table of one precision, and the rate of the floor."""
    chosen = [row for row in rows if row.precision == precision]
    against = next((row for row in chosen if row.what.startswith("OpenVINO")), None)
    lines = [
        [row.what, *(row.missing or cell(row, against, batch) for batch in options.batches)] for row in chosen
    ]
    return f"{table([precision, *(f'batch {batch}' for batch in options.batches)], lines)}\n\n" + rate(
        chosen[0], options
    )


def cell(row: Row, against: Row | None, batch: int) -> str:
    text = spread(row.per_image(batch))
    if against is None or not against.seconds.get(batch):
        return text
    return f"{text} · {ratio(row.seconds[batch], against.seconds[batch]):.2f}x"


def rate(row: Row, options: Options) -> str:
    """What the floor amounts to."""
    work = matmul.operations(architecture(options.model)) / 1e9
    rates = [work / (median(row.per_image(batch)) / 1000) for batch in options.batches]
    figures = ", ".join(
        f"{it:.0f} at batch {batch}" for it, batch in zip(rates, options.batches, strict=True)
    )
    return f"{row.precision} matrix products, GFLOP/s: {figures}."


def medians(rows: list[Row], batches: tuple[int, ...]) -> dict[str, list[float]]:
    return {row.name: [median(row.per_image(batch)) for batch in batches] for row in rows if not row.missing}


def targets(rows: list[Row]) -> list[Target]:
    """Each at batch 4 and 8, ratios paired by round."""
    found = {row.name: row.seconds for row in rows}

    def compared(what: str, of: str, to: str, limit: float) -> Iterator[Target]:
        for batch in (4, 8):
            times, others = found.get(of, {}).get(batch, []), found.get(to, {}).get(batch, [])
            yield Target(f"{what}, batch {batch}", limit, ratio(times, others) if times else math.nan)

    return [
        *compared(
            "bf16 forward, fused N x N / OpenVINO bf16 logits",
            "bf16 ours, fused N x N",
            "bf16 OpenVINO, logits only",
            1.0,
        ),
        *compared(
            "fp32 forward, fused N x N / OpenVINO fp32 logits",
            "fp32 ours, fused N x N",
            "fp32 OpenVINO, logits only",
            1.1,
        ),
        *(
            target
            for precision in PRECISIONS
            for capture in ("fused N x N", "CLS rows")
            for target in compared(
                f"{precision} {capture} / no capture",
                f"{precision} ours, {capture}",
                f"{precision} ours, no capture",
                1.03,
            )
        ),
    ]
