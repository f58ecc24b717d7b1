"""The soak: mixed traffic, failing batches, hang-ups and garbage for minutes, on a server of its own.

    python -m tests.load.soak [--minutes 10] [--users 12] [--seed 0]

Prints one Markdown table. Exits with a sentence where an answer was not what its request deserved, or where
the server at rest holds more than it did half-way.
"""

import argparse
import asyncio
import contextlib
import json
import random
import shutil
import socket
import struct
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

from service.load.markdown import table
from tests.load.faults import FAULTS
from tests.load.server import server
from tests.load.traffic import Message, Traffic

WARM_UP_S = 10.0
REST_S = 1.0
PATIENCE_S = 60.0
HANG_UPS = 0.1
MANY = 50
MEMORY_FACTOR, MEMORY_SLACK, SLACK = 1.05, 10 * 2**20, 3
LINGER_NOT = struct.pack("ii", 1, 0)
BROKEN = (ConnectionError, asyncio.IncompleteReadError, TimeoutError)


class User:
    """Sends one message after the other, over one connection as long as the server keeps it."""

    def __init__(
        self, port: int, traffic: Traffic, seed: int, tally: Counter[str], errors: list[str]
    ) -> None:
        self.port, self.traffic, self.tally, self.errors = port, traffic, tally, errors
        self.rng = random.Random(seed)
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and len(self.errors) < MANY:
            message = self.traffic.message()
            if message.kind != "garbage" and self.rng.random() < HANG_UPS:
                await self.hang_up(message)
            else:
                await self.ask(message)
        self.close()

    async def ask(self, message: Message) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                status, body = await self.exchange(message.data)
        except BROKEN:
            status, body = 0, b""
        self.tally["requests"] += 1
        self.tally[f"kind {message.kind}"] += 1
        self.tally[f"status {status}"] += 1
        if status not in message.deserves or (status == 200 and message.holds not in body):
            head = message.data.partition(b"\r\n\r\n")[0]
            self.errors.append(f"{message.kind}: {head[:150]!r} got {status} {body[:300]!r}")
        if not status:
            self.close()

    async def exchange(self, data: bytes) -> tuple[int, bytes]:
        reader, writer = await self.connection()
        with contextlib.suppress(ConnectionError):  # a refusal may come before all is sent
            writer.write(data)
            await writer.drain()
        lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        lengths = [int(line.split()[1]) for line in lines if line.startswith(b"content-length:")]
        body = await (reader.readexactly(lengths[0]) if lengths else reader.read())
        if not lengths or b"connection: close" in lines:
            self.close()
        return int(lines[0].split()[1]), body

    async def hang_up(self, message: Message) -> None:
        """Before the body, in the middle of anything, in the queue, or in the middle of the answer."""
        head, whole = message.data.index(b"\r\n\r\n") + 4, len(message.data)
        sent = self.rng.choice((head, self.rng.randrange(whole), whole, whole))
        with contextlib.suppress(*BROKEN):
            reader, writer = await self.connection()
            writer.write(message.data[:sent])
            await writer.drain()
            await asyncio.sleep(self.rng.uniform(0, 0.1))
            if sent == whole and self.rng.random() < 0.5:
                await asyncio.wait_for(reader.read(self.rng.randrange(1, 4096)), PATIENCE_S)
            if self.rng.random() < 0.5:  # a reset instead of an end
                connection: socket.socket = writer.get_extra_info("socket")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
        self.tally["hang-ups"] += 1
        self.close()

    async def connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.streams is None:
            self.streams = await asyncio.open_connection("127.0.0.1", self.port)
        return self.streams

    def close(self) -> None:
        if self.streams is not None:
            self.streams[1].transport.abort()
            self.streams = None


async def soak(options: argparse.Namespace, folder: Path) -> bool:
    tally: Counter[str] = Counter()
    errors: list[str] = []
    samples: list[tuple[int, int, int]] = []
    traffic, half = Traffic(options.seed), options.minutes * 30
    command = ("-m", "tests.load.faults", str(folder / "counts.json"))
    async with server(*command, log=folder / "log") as (url, process):
        port = int(url.rpartition(":")[2])
        users = [User(port, traffic, seed, tally, errors) for seed in range(options.users)]
        for seconds in (WARM_UP_S, half, half):
            await asyncio.gather(*(user.send(seconds) for user in users))
            await asyncio.sleep(REST_S)
            samples.append(sample(process))
    injected = json.loads((folder / "counts.json").read_text())
    print(report(tally, errors, injected, samples), flush=True)
    said = complaints(errors, unhandled(folder / "log"), injected, samples)
    for complaint in said:
        print(complaint, file=sys.stderr)
    return not said


def sample(process: psutil.Process) -> tuple[int, int, int]:
    try:
        return process.memory_info().rss, process.num_fds(), process.num_threads()
    except psutil.Error:
        sys.exit("The server ended by itself.")


def report(
    tally: Counter[str], errors: list[str], injected: dict[str, int], samples: list[tuple[int, int, int]]
) -> str:
    memory, descriptors, threads = zip(*samples, strict=True)
    statuses = sorted(key for key in tally if key.startswith("status"))
    rows = [
        ("requests answered or refused", str(tally["requests"])),
        ("garbage among them", str(tally["kind garbage"])),
        *((key.replace("status 0", "closed without an answer"), str(tally[key])) for key in statuses),
        ("errors that are not the client's", str(len(errors))),
        *(
            (f"fault injected: {fault}", f"{injected.get(fault, 0)} for {tally[f'kind {fault}']} requests")
            for fault in FAULTS
        ),
        ("hang-ups", str(tally["hang-ups"])),
        ("memory at rest: start, middle, end", ", ".join(f"{size / 2**20:.0f} MiB" for size in memory)),
        ("descriptors at rest: start, middle, end", ", ".join(map(str, descriptors))),
        ("threads at rest: start, middle, end", ", ".join(map(str, threads))),
    ]
    return table(("what", "seen"), rows)


def unhandled(log: Path) -> list[str]:
    """Errors in the server's log but those that it answered with a 500."""
    lines = log.read_text().splitlines()
    return [line for line in lines if "[error" in line and "[service.api]" not in line]


def complaints(
    errors: list[str], logged: list[str], injected: dict[str, int], samples: list[tuple[int, int, int]]
) -> list[str]:
    """A sentence for whatever must not be."""
    (_, *first), (half_way, *_), (memory, *last) = samples
    said = []
    if errors:
        said.append("\n".join([f"{len(errors)} answers were not what was deserved, such as", *errors[:5]]))
    if logged:
        said.append("\n".join([f"{len(logged)} errors in the log that nobody handled, such as", *logged[:5]]))
    if memory > half_way * MEMORY_FACTOR + MEMORY_SLACK:
        said.append(
            f"Memory is not flat: {half_way / 2**20:.0f} MiB half-way, {memory / 2**20:.0f} MiB at the end."
        )
    for what, start, end in zip(("Descriptors", "Threads"), first, last, strict=True):
        if end > start + SLACK:
            said.append(f"{what} are not flat: {start} at the start, {end} at the end.")
    if missing := [fault for fault in FAULTS if not injected.get(fault)]:
        said.append(f"Never injected: {', '.join(missing)}; soak for longer.")
    return said


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--users", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    passed = False
    try:
        passed = asyncio.run(soak(options, folder))
    finally:
        if passed:
            shutil.rmtree(folder)
        else:
            print(f"The server's log is {folder / 'log'}.", file=sys.stderr)
    sys.exit(not passed)
