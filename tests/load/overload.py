"""Five times the capacity, in an open loop, on a server of its own: what RELIABILITY.md says of overload.

    python -m tests.load.overload [--model NAME] [--store FOLDER] [--seconds 20] [--times 5]

Prints one Markdown row a figure. It wants a quiet machine, and cores that the server does not use. The peak
is the mean of a closed loop before the burst and one after: rented machines change their pace by a tenth.
"""

import argparse
import asyncio
import contextlib
import itertools
import time
from collections.abc import Sequence

import httpx
import numpy as np
import psutil
import uvloop

from service.load.answers import Answer, Run
from service.load.loops import strangers
from service.load.photographs import drawn
from tests.load.server import server

SAMPLE_S = 0.2
REFUSED = 503


async def sample(url: str, process: psutil.Process, seconds: list[float], sizes: list[int]) -> None:
    """Asks for the health and the metrics again and again; notes how long that takes, and the memory."""
    async with httpx.AsyncClient() as client:
        for path in itertools.cycle(("/healthz", "/metrics")):
            began = time.perf_counter()
            await client.get(url + path)
            seconds.append(time.perf_counter() - began)
            sizes.append(process.memory_info().rss)
            await asyncio.sleep(SAMPLE_S)


def percentile(answers: Sequence[Answer], percent: float) -> float:
    return float(np.percentile([answer.latency for answer in answers], percent)) if answers else float("nan")


class Sender:
    """Sends over bare sockets, which are kept alive: the generator must cost less than what it measures."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.answers: list[Answer] = []
        self.began = time.perf_counter()

    def now(self) -> float:
        return time.perf_counter() - self.began

    async def send(self, body: bytes, due: float) -> Answer:
        """Sends one request, due at that time, and reads all of the answer."""
        reader, writer = (
            self.idle.pop() if self.idle else await asyncio.open_connection("127.0.0.1", self.port)
        )
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        status, size = 0, 0
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            writer.write(head.encode() + body)
            lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
            size = int(next(line for line in lines if line.startswith(b"content-length")).split()[1])
            await reader.readexactly(size)
            status = int(lines[0].split()[1])
            if b"connection: close" not in lines:
                self.idle.append((reader, writer))
        if not status or b"connection: close" in lines:
            writer.close()
        answer = Answer(due, self.now(), status, size)
        self.answers.append(answer)
        return answer

    async def closed(self, bodies: Sequence[bytes], users: int, seconds: float) -> Run:
        """So many requests under way, always, until the end; its rate counts to the last answer."""
        self.answers, began = [], self.now()

        async def user(first: int) -> None:
            for body in itertools.islice(itertools.cycle(bodies), first, None):
                if self.now() > began + seconds:
                    return
                await self.send(body, self.now())

        await asyncio.gather(*(user(index) for index in range(users)))
        return Run(self.answers, self.now() - began)

    async def open(self, bodies: Sequence[bytes], due: Sequence[float], seconds: float) -> Run:
        """A request at each due time, whatever is still unanswered."""
        self.answers, self.began, sent = [], time.perf_counter(), []
        for at, body in zip(due, itertools.cycle(bodies), strict=False):
            await asyncio.sleep(max(0.0, at - self.now()))
            sent.append(asyncio.create_task(self.send(body, at)))
        await asyncio.gather(*sent)
        return Run(self.answers, seconds)


async def measure(options: argparse.Namespace) -> None:
    bodies = drawn(16, 640, 480)
    start = "from service.cli.main import main; main()"
    flags = ["--model", options.model, "--model-store", options.store, "--log-level", "warning"]
    async with server("-c", start, "serve", *flags, "--port") as (url, process):
        sender = Sender(int(url.rpartition(":")[2]))
        await sender.closed(bodies, 32, 3)
        before = (await sender.closed(bodies, 32, options.seconds / 2)).rate
        rest = process.memory_info().rss
        due = strangers(options.times * before, options.seconds, seed=0)
        seconds: list[float] = []
        sizes: list[int] = []
        sampling = asyncio.create_task(sample(url, process, seconds, sizes))
        run = await sender.open(bodies, due, options.seconds)
        sampling.cancel()
        first = await sender.send(bodies[0], sender.now())
        after = (await sender.closed(bodies, 32, options.seconds / 2)).rate
    peak = (before + after) / 2
    half = options.seconds / 2  # by then the queue is full; what comes after the schedule does not count
    goodput = sum(answer.good and half < answer.done <= 2 * half for answer in run.answers) / half
    refused = [answer for answer in run.answers if answer.status == REFUSED]
    others = len(run.answers) - len(refused) - len(run.latencies)
    for what, seen in (
        ("peak, closed loop of 32, before and after", f"{before:.1f}/s, {after:.1f}/s"),
        ("offered", f"{len(due) / options.seconds:.0f}/s"),
        ("goodput of the peak", f"{goodput / peak:.0%}"),
        ("answered well, p50 and p99", f"{run.percentile(50):.2f} s, {run.percentile(99):.2f} s"),
        ("refused", f"{len(refused)} of {len(run.answers)}; other statuses: {others}"),
        ("refusals, p50 and p99", f"{percentile(refused, 50):.3f} s, {percentile(refused, 99):.3f} s"),
        ("/healthz and /metrics, p99", f"{np.percentile(seconds, 99):.3f} s"),
        ("memory at rest and at most", f"{rest / 2**20:.0f} MiB, {max(sizes) / 2**20:.0f} MiB"),
        ("first answer after the burst", f"{first.latency:.2f} s"),
    ):
        print(f"| {what} | {seen} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="shapes-tiny")
    parser.add_argument("--store", default="model_store")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--times", type=float, default=5.0)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # it costs less than asyncio's own
        runner.run(measure(parser.parse_args()))
