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
from service.engine.runner import DeviceError, Runner
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
    blocks = [block(rows, options, it) for it in dict.fromkeys(row.precision for row in rows)]
    text = "\n\n".join([intro(options), *blocks, images_a_second(rows, options), plotted])
    return Part(f"1. Forward passes, {options.model}", text, targets(rows, options))


def rounds(repeats: int, batch: int) -> int:
    """`repeats` at batch 8, more of the quick ones, and never fewer than what has a median."""
    return max(min(repeats, 3), min(repeats * 8 // batch, repeats * 4))


def cases(options: Options, registry: Registry) -> Iterator[Row]:
    """The floor, ours, and the others', for both precisions.

    bf16 only where torch, by `--precision auto`, would take it: where it is not multiplied natively, OpenVINO
    quietly computes in fp32, and torch takes eight times as long as in fp32.
    """
    shape = architecture(options.model)
    openvino = runtimes.OpenVino(options.model)
    native = Runner(options.device, "auto", "torch").precision
    for precision, dtype in PRECISIONS.items():
        if precision == "bf16" and native != "bf16":
            yield Row(precision, "ours", partial(ours, None), missing="This device does not multiply bf16.")
            continue
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
        yield from in_int8(registry)


def in_int8(registry: Registry) -> Iterator[Row]:
    """Ours where linear layers multiply whole numbers, if this CPU can."""
    try:
        model = models.load(Runner("cpu", "int8"), registry)
    except DeviceError as error:
        yield Row("int8", "ours", partial(ours, None), missing=str(error))
        return
    for name, capture in CAPTURES.items():
        yield Row("int8", f"ours, {name}", partial(ours, model.forward, capture))


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
        "many times OpenVINO's logits-only pass at the same precision (for int8: in bf16) that is, paired "
        "round by round. *Matrix products alone* are the qkv, proj, fc1 and fc2 products of all blocks, "
        "prepacked by oneDNN."
    )


def block(rows: list[Row], options: Options, precision: str) -> str:
    """The table of one precision, and the rate of the floor."""
    chosen = [row for row in rows if row.precision == precision]
    comparable = "bf16" if precision == "int8" else precision
    against = next((row for row in rows if row.name == f"{comparable} OpenVINO, logits only"), None)
    lines = [
        [row.what, *(row.missing or cell(row, against, batch) for batch in options.batches)] for row in chosen
    ]
    text = table([precision, *(f"batch {batch}" for batch in options.batches)], lines)
    return f"{text}\n\n{rate(chosen[0], options)}" if chosen[0].what == FLOOR else text


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


def images_a_second(rows: list[Row], options: Options) -> str:
    """Our passes as a rate, and as a share of what the matrix products alone reach in the same precision."""
    floors = {row.precision: row for row in rows if row.what == FLOOR}
    lines = []
    for row in rows:
        if row.what.startswith("ours,") and row.precision in floors and not row.missing:
            times = [
                (median(row.per_image(it)), median(floors[row.precision].per_image(it)))
                for it in options.batches
            ]
            lines.append([row.name, *(f"{1000 / own:.4g}/s · {bound / own:.0%}" for own, bound in times)])
    columns = ["images a second · share of the products' rate", *(f"batch {it}" for it in options.batches)]
    return table(columns, lines)


def medians(rows: list[Row], batches: tuple[int, ...]) -> dict[str, list[float]]:
    return {row.name: [median(row.per_image(batch)) for batch in batches] for row in rows if not row.missing}


def targets(rows: list[Row], options: Options) -> list[Target]:
    """On a CPU each at batch 4 and 8, ratios paired by round; on a CUDA card one rate, at the best batch."""
    if options.device != "cpu":
        fused = next(row for row in rows if row.name == "bf16 ours, fused N x N")
        best = max(1000 / median(fused.per_image(batch)) for batch in options.batches)
        return [Target("bf16 forward, fused N x N", 10_000, best, "images/s", at_least=True)]
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
        *compared(
            "int8 forward, fused N x N / OpenVINO bf16 logits",
            "int8 ours, fused N x N",
            "bf16 OpenVINO, logits only",
            1.0,
        ),
        *(
            target
            for precision in (*PRECISIONS, "int8")
            for capture in ("fused N x N", "CLS rows")
            for target in compared(
                f"{precision} {capture} / no capture",
                f"{precision} ours, {capture}",
                f"{precision} ours, no capture",
                1.03,
            )
        ),
    ]
