"""Part 2: the same work over HTTP, ours and the peers', in turns."""

from __future__ import annotations

import asyncio
import itertools
import math
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from benchmarks import models, servers
from benchmarks.options import Options
from benchmarks.photos import described, photographs
from benchmarks.report import Part, Target
from benchmarks.samples import Samples, interleaved, median, ratio, spread
from benchmarks.servers import TASKS, Server
from service.engine.runner import Runner
from service.engine.threads import cpu_budget
from service.load.answers import Question, Run, joined
from service.load.loops import closed_loop, for_seconds, load_client
from service.load.markdown import milliseconds, table
from service.store.registry import Registry
from service.types import Capture

OURS, EXACT = "ours", "ours, fp32"
BATCH = 8
"""The service's largest batch on a CPU."""
BARE_ROUNDS = 3


@dataclass(frozen=True)
class Cell:
    """One server, one task, so many requests under way."""

    server: str
    task: str
    in_flight: int


@dataclass(frozen=True)
class Measured:
    """A cell, round by round.

    client_s: CPU seconds that sending took.
    bare: seconds of a bare forward pass by batch size, just before; of our servers only.
    """

    runs: list[Run] = field(default_factory=list)
    client_s: list[float] = field(default_factory=list)
    bare: Samples = field(default_factory=lambda: defaultdict(list))

    @property
    def rates(self) -> list[float]:
        return [run.rate for run in self.runs]

    @property
    def share(self) -> float:
        """The served rate over that of bare forward passes, round by round; NaN without any."""
        pairs = zip(self.rates, self.bare[str(BATCH)], strict=False)
        return median([rate * bare / BATCH for rate, bare in pairs])

    @property
    def beyond_bare_ms(self) -> float:
        """What a request takes at the median beyond a bare forward pass of one image, round by round."""
        pairs = zip(self.runs, self.bare["1"], strict=False)
        return 1000 * median([run.percentile(50) - bare for run, bare in pairs])

    @property
    def client_ms(self) -> float:
        """CPU milliseconds that the load generator took a request, on the same CPUs."""
        return sum(self.client_s) * 1000 / max(1, len(joined(self.runs).answers))


Cells = dict[Cell, Measured]


def run(options: Options) -> Part:
    torch.set_num_threads(cpu_budget())
    files = photographs(8)
    with models.store(options.model) as registry:
        kinds = [
            servers.ours(OURS, registry.root, "--device", options.device),
            servers.ours(EXACT, registry.root, "--device", options.device, "--precision", "fp32"),
            servers.litserve(options.model),
            servers.plain_fastapi(options.model),
        ]
        with servers.started(kinds) as running:
            measured = measure(options, running, files, registry)
    missing = [f"{kind.name}: {kind.missing}." for kind in kinds if kind.missing]
    text = "\n\n".join([intro(options), *missing, cells_table(measured), bare_text(measured)])
    return Part(f"2. Served, {options.model}", text, targets(measured))


def measure(
    options: Options, running: dict[str, Server], files: Sequence[bytes], registry: Registry
) -> Cells:
    """All rounds; in each, every cell has its turn, and just before it our servers' bare forward passes."""
    cells: Cells = {}
    passes = forwards(options, registry)
    for number in range(options.served_rounds):
        for task, in_flight in itertools.product(TASKS, options.in_flight):
            for name, server in running.items():
                cell = Cell(name, task, in_flight)
                print(f"  round {number + 1}: {name}, {task}, {in_flight} in flight", file=sys.stderr)
                measured = cells.setdefault(cell, Measured())
                for batch, seconds in interleaved(passes.get(name, {}), BARE_ROUNDS).items():
                    measured.bare[batch].append(median(seconds))
                run, spent_s = load(server, task, files, in_flight, options.seconds)
                measured.runs.append(run)
                measured.client_s.append(spent_s)
    return cells


def forwards(options: Options, registry: Registry) -> dict[str, dict[str, partial]]:
    """The forward pass of our servers, without them."""
    calls = {}
    for name, precision in ((OURS, "auto"), (EXACT, "fp32")):
        model = models.load(Runner(options.device, precision), registry)
        noise = np.random.default_rng(0).normal(size=(BATCH, 3, 224, 224)).astype(np.float32)
        calls[name] = {
            str(batch): partial(forward, model.forward, noise[:batch].copy()) for batch in (1, BATCH)
        }
    return calls


def forward(model: object, pixels: np.ndarray) -> object:
    return model(pixels, Capture.NONE).logits.cpu()


def load(
    server: Server, task: str, files: Sequence[bytes], in_flight: int, seconds: float
) -> tuple[Run, float]:
    """A closed loop on one server, which runs only meanwhile; and what sending took, CPU seconds."""
    questions = server.questions(task, files)
    with server.running():
        return asyncio.run(_load(questions, in_flight, seconds))


async def _load(questions: Iterator[Question], in_flight: int, seconds: float) -> tuple[Run, float]:
    async with load_client() as client:
        await closed_loop(client, itertools.islice(questions, 4), min(4, in_flight))
        began = time.process_time()
        run = await closed_loop(client, for_seconds(questions, seconds), in_flight)
        return run, time.process_time() - began


def intro(options: Options) -> str:
    return (
        f"HTTP on loopback, 640 x 480 JPEG, {described()}; {options.served_rounds} rounds of "
        f"{options.seconds:g} s and until what was sent is answered. One server runs at a time, the others "
        "are stopped (SIGSTOP). Peers: transformers in fp32, its default, whole-matrix rollout, cv2's PNG. "
        "*bare*: share of the rate of a forward pass without capture at batch "
        f"{BATCH}, in this process, just before. *client*: CPU time of the load generator, on the same CPUs."
    )


def cells_table(measured: Cells) -> str:
    columns = ["server", "task", "in flight", "answers/s", "p50 ms", "p95 ms", "failed"]
    columns += ["over LitServe", "bare", "client ms"]
    return table(columns, [cell_row(cell, measured) for cell in sorted(measured, key=order)])


def order(cell: Cell) -> tuple[int, int]:
    return TASKS.index(cell.task), cell.in_flight


def cell_row(cell: Cell, measured: Cells) -> list[str]:
    it = measured[cell]
    every = joined(it.runs)
    return [
        cell.server,
        cell.task,
        str(cell.in_flight),
        spread(it.rates),
        milliseconds(every.percentile(50)),
        milliseconds(every.percentile(95)),
        str(every.failed),
        times(over_litserve(cell, measured)),
        percent(it.share),
        f"{it.client_ms:.1f}",
    ]


def over_litserve(cell: Cell, measured: Cells) -> float:
    """This server's rate over LitServe's at the same task and concurrency, round by round."""
    lit = next((it for it in measured if same(it, cell) and it.server.startswith("LitServe")), None)
    if lit is None or cell not in measured or not all(measured[lit].rates):
        return math.nan
    return ratio(measured[cell].rates, measured[lit].rates)


def same(one: Cell, other: Cell) -> bool:
    return (one.task, one.in_flight) == (other.task, other.in_flight)


def bare_text(measured: Cells) -> str:
    lines = []
    for name in (OURS, EXACT):
        bare = [it.bare for cell, it in measured.items() if cell.server == name]
        samples = {batch: [s / batch * 1000 for it in bare for s in it[str(batch)]] for batch in (1, BATCH)}
        lines.append([name, *map(spread, samples.values())])
    return table(["bare forward pass, ms an image", "batch 1", f"batch {BATCH}"], lines)


def targets(measured: Cells) -> list[Target]:
    at_8 = partial(Cell, task="rollout", in_flight=8)

    def of_ours(task: str, in_flight: int) -> Measured:
        return measured.get(Cell(OURS, task, in_flight), Measured())

    shares = {"predict": 92, "rollout": 88, "blocks": 80}
    return [
        Target(
            "served rollout / LitServe, defaults of each, 8 in flight",
            4,
            over_litserve(at_8(OURS), measured),
            at_least=True,
        ),
        Target(
            "served rollout / LitServe, both fp32, 8 in flight",
            2,
            over_litserve(at_8(EXACT), measured),
            at_least=True,
        ),
        *(
            Target(
                f"served {task} / bare forward, 32 in flight",
                limit,
                100 * of_ours(task, 32).share,
                "%",
                at_least=True,
            )
            for task, limit in shares.items()
        ),
        *(
            Target(f"one idle {task} - bare forward", 20, of_ours(task, 1).beyond_bare_ms, "ms")
            for task in ("predict", "rollout")
        ),
    ]


def times(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}x"


def percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.0%}"
