"""Part 4: latency and goodput against load, in an open loop."""

from __future__ import annotations

import asyncio
import itertools
import sys

from benchmarks import models, plots, servers
from benchmarks.options import Options
from benchmarks.photos import described, photographs
from benchmarks.report import Part
from benchmarks.servers import Server
from service.load.curve import LOADS, Point, curve, knee
from service.load.loops import closed_loop, for_seconds, load_client
from service.load.markdown import milliseconds, table

OBJECTIVE_S = 1.0
PLOT = "open_loop.png"


def run(options: Options) -> Part:
    with models.store(options.model) as registry:
        kind = servers.ours("ours", registry.root, "--device", options.device)
        with servers.started([kind]) as running, running[kind.name].running():
            capacity, points = asyncio.run(measure(running[kind.name], options))
    best = knee(points, OBJECTIVE_S)
    columns = ["load", "requests/s", "goodput/s", "p50 ms", "p95 ms", "p99 ms", "failed"]
    plotted = plots.open_loop(options.out.with_name(PLOT), points, best, OBJECTIVE_S)
    text = (
        f"/attention/rollout, 640 x 480 JPEG, {described()}; capacity {capacity:.1f}/s (closed loop, "
        f"32 in flight). Requests come at random (Poisson), {3 * options.seconds:g} s a load, whatever comes "
        f"back; latency counts from when a request was due; goodput: answered within {OBJECTIVE_S:g} s. "
        f"The knee, the most goodput for the waiting, is at {best.load:.0%} of capacity.\n\n"
        f"{table(columns, [row(point, best) for point in points])}\n\n{plotted}"
    )
    return Part(f"4. Open loop, {options.model}", text)


async def measure(server: Server, options: Options) -> tuple[float, list[Point]]:
    """The capacity, and a point a load."""
    questions = server.questions("rollout", photographs(8))
    async with load_client() as client:
        await closed_loop(client, itertools.islice(questions, 8), 8)
        capacity = (await closed_loop(client, for_seconds(questions, 2 * options.seconds), 32)).rate
        points = []
        async for point in curve(client, questions, capacity, LOADS, 3 * options.seconds):
            print(f"  at {point.load:.0%}", file=sys.stderr)
            points.append(point)
    return capacity, points


def row(point: Point, best: Point) -> list[str]:
    run = point.run
    return [
        f"{point.load:.0%}" + (" (knee)" if point is best else ""),
        f"{point.offered:.1f}",
        f"{run.goodput(OBJECTIVE_S):.1f}",
        *(milliseconds(run.percentile(percent)) for percent in (50, 95, 99)),
        str(run.failed),
    ]
