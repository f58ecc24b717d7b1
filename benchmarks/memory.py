"""Part 5: resident memory under load and over time, and how long a start takes."""

from __future__ import annotations

import asyncio
import itertools
import math
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import models, servers
from benchmarks.options import Options
from benchmarks.photos import photographs
from benchmarks.report import Part, Target
from benchmarks.samples import median, spread
from benchmarks.servers import ROOT, TASKS, Kind, Server
from service.load.answers import Question
from service.load.loops import closed_loop, load_client
from service.load.markdown import table
from service.models.spec import Architecture
from service.store.registry import Registry

MB = 1e6
IN_FLIGHT = 8
REQUESTS = 48
SHAPES = "shapes-tiny"
SHAPES_LIKE = Architecture((224, 224), 16, 128, 12, 4, 512, 10)


class Peak(threading.Thread):
    """Watches a process and its children inside a with block; `bytes` is the most they had resident.

    Of a child only what no file backs counts, so that libraries count once.
    """

    def __init__(self, pid: int) -> None:
        import psutil

        super().__init__(daemon=True)
        self.process = psutil.Process(pid)
        self.gone = psutil.Error
        self.bytes = 0
        self._end = threading.Event()

    def run(self) -> None:
        while not self._end.wait(0.05):
            self.bytes = max(self.bytes, self.now())

    def now(self) -> int:
        total = self.process.memory_info().rss
        for child in self.process.children(recursive=True):
            try:
                memory = child.memory_info()
            except self.gone:
                continue
            total += memory.rss - getattr(memory, "shared", 0)
        return total

    def since_start(self) -> int:
        """The most that the largest of the processes ever had resident, libraries included; 0 if unknown."""
        every = [self.process, *self.process.children(recursive=True)]
        return max(high_water(process.pid) for process in every)

    def __enter__(self) -> Peak:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._end.set()
        self.join()
        self.bytes = max(self.bytes, self.now())


def high_water(pid: int) -> int:
    """The kernel's own record, bytes; 0 where there is none."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def run(options: Options) -> Part:
    with models.store(options.model) as registry:
        weights = (registry.root / models.NAME / "model.safetensors").stat().st_size
        exact = servers.ours("ours, fp32", registry.root, "--device", options.device, "--precision", "fp32")
        auto = servers.ours("ours", registry.root, "--device", options.device)
        kinds = [auto, exact, servers.litserve(options.model), servers.plain_fastapi(options.model)]
        peaks = {kind.name: peak(kind) for kind in kinds}
        early, late = growth(auto, options.requests)
        models.add(registry, SHAPES, SHAPES_LIKE)
        starts = start_seconds(registry, options.repeats)
    limit = (2 * weights + 600e6) / MB
    few, many = options.requests
    text = "\n\n".join(
        [
            f"Peak resident memory during {REQUESTS} requests of all three tasks, {IN_FLIGHT} in flight. "
            f"Weights: {weights / MB:.0f} MB in fp32. Children count with what no file backs. "
            "*Since start*: the largest process's own peak, loading included.",
            table(["server", "peak MB", "over ours", "since start, MB"], peak_rows(peaks, auto.name)),
            f"*ours* after {few} mixed requests (tasks, overlays, 0.3 and 3 megapixels): "
            f"{early / MB:.0f} MB; after {many}: {late / MB:.0f} MB ({late / early - 1:+.1%}).",
            f"From start to ready with {SHAPES}: {spread(starts, 2)} s.",
        ]
    )
    return Part(
        f"5. Memory and start, {options.model}",
        text,
        [
            Target("peak resident, fp32, against weights x 2 + 600 MB", limit, max(peaks[exact.name]), "MB"),
            Target(f"resident after {many} / after {few} requests", 1.05, late / early),
            Target(f"start to ready, {SHAPES}", 5, median(starts), "s"),
        ],
    )


def peak(kind: Kind) -> tuple[float, float]:
    """MB at the same load for everybody, and since the start; NaN where it can't be started."""
    if kind.missing:
        return math.nan, math.nan
    print(f"  memory of {kind.name}", file=sys.stderr)
    files = photographs(8)
    with servers.started([kind]) as running, running[kind.name].running():
        server = running[kind.name]
        each = [server.questions(task, files) for task in TASKS]
        questions = itertools.islice(itertools.cycle(each), REQUESTS)
        with Peak(server.process.pid) as seen:
            ask(next(it) for it in questions)
        return seen.bytes / MB, seen.since_start() / MB


def peak_rows(peaks: dict[str, tuple[float, float]], against: str) -> list[list[str]]:
    ours = peaks[against][0]
    return [
        [name, f"{loaded:.0f}", f"{loaded / ours:.2f}x", f"{started:.0f}"]
        if not math.isnan(loaded)
        else [name, "not installed", "-", "-"]
        for name, (loaded, started) in peaks.items()
    ]


def growth(kind: Kind, requests: tuple[int, int]) -> tuple[int, int]:
    """Resident bytes after so many, and after so many more, mixed requests."""
    few, many = requests
    print(f"  {many} mixed requests", file=sys.stderr)
    with servers.started([kind]) as running, running[kind.name].running():
        server = running[kind.name]
        questions = mixed(server)
        watch = Peak(server.process.pid)
        ask(itertools.islice(questions, few))
        early = watch.now()
        ask(itertools.islice(questions, many - few))
        return early, watch.now()


def mixed(server: Server) -> Iterator[Question]:
    """Every task, with and without an overlay; one photograph in eight has 3 megapixels."""
    files: Sequence[bytes] = [*photographs(7), *photographs(1, 2048, 1536)]
    kinds = [
        ("predict", ""),
        ("rollout", ""),
        ("rollout", "?overlay=heatmap"),
        ("blocks", ""),
        ("blocks", "?layout=grid"),
    ]
    each = [server.questions(task, files, query) for task, query in kinds]
    return (next(it) for it in itertools.cycle(each))


def ask(questions: Iterator[Question]) -> None:
    """All of them, answered."""

    async def send() -> None:
        async with load_client() as client:
            run = await closed_loop(client, questions, IN_FLIGHT)
            if run.failed:
                print(f"  {run.failed} of {len(run.answers)} failed", file=sys.stderr)

    asyncio.run(send())


def start_seconds(stand_in: Registry, repeats: int) -> list[float]:
    """Seconds from the command to /readyz, with the bundled model or, where it lacks, one of its shape."""
    bundled = ROOT / "model_store"
    store: Path = bundled if (bundled / SHAPES / "model.safetensors").exists() else stand_in.root
    seconds = []
    for _ in range(repeats):
        server = Server(servers.ours("start", store, model=SHAPES))
        seconds.append(server.start_s)
        server.stop()
    return seconds
