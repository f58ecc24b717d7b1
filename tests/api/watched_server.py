"""A server process under watch, `vit-attention serve` as users start it, and raw sockets to it."""

import contextlib
import io
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
from PIL import Image

ROOT = Path(__file__).parent.parent.parent
DEADLINE_S = 60.0
"""No request may take longer. Generous: it is there to find what hangs."""
MOST_GROWTH = 300 * 2**20
"""Bytes by which the process may grow beyond its size at rest."""
SAMPLE_S = 0.005
ROUTES = ["/predict", "/attention/rollout?overlay=heatmap", "/attention/blocks"]


@dataclass(frozen=True)
class Answer:
    """One response; status 0 is a connection that was closed without one."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def problem(self) -> str:
        """The last part of the problem's type, and nothing where the answer is none."""
        if self.headers.get("content-type") != "application/problem+json":
            return ""
        return json.loads(self.body)["type"].rpartition(":")[2]


CLOSED = Answer(0, {}, b"")


class Wire:
    """A connection that sends whatever bytes it is given. Every wait has a deadline.

    Raises TimeoutError where the server neither answers nor closes the connection.
    """

    def __init__(self, port: int, deadline_s: float = DEADLINE_S) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=deadline_s)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.deadline_s = deadline_s
        self.received = b""

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> bool:
        """Whether all of it was taken: a server that has refused may close before."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def answer(self) -> Answer:
        """The next response."""
        ends = time.monotonic() + self.deadline_s
        while b"\r\n\r\n" not in self.received:
            if not self._receive(ends):
                assert not self.received, f"half an answer: {self.received[:200]!r}"
                return CLOSED
        head, _, self.received = self.received.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        status = int(first.split()[1])
        if status < 200 or "content-length" in headers:
            length = int(headers.get("content-length", 0))
            while len(self.received) < length:
                assert self._receive(ends), "the answer's body is cut short"
            body, self.received = self.received[:length], self.received[length:]
        else:
            while self._receive(ends):
                pass
            body, self.received = self.received, b""
        return Answer(status, headers, body)

    def something_came(self) -> bool:
        """Whether there is anything to receive by now."""
        return bool(select.select([self.socket], [], [], 0)[0])

    def closed(self) -> bool:
        """Waits for the server to close the connection; False where something else comes."""
        return not self.received and not self._receive(time.monotonic() + self.deadline_s)

    def _receive(self, ends: float) -> bool:
        self.socket.settimeout(max(0.01, ends - time.monotonic()))
        try:
            data = self.socket.recv(2**18)
        except (ConnectionResetError, BrokenPipeError):
            data = b""
        self.received += data
        return bool(data)


class WatchedServer:
    """A server with the bundled model, whose resident memory is sampled all the time.

    rest: bytes it holds once it has answered a few dozen good pictures.
    peak: the most it held since `watch_anew`, which each test begins with.
    """

    def __init__(self, log: Path, **settings: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            self.port: int = taken.getsockname()[1]
        self.log = log
        environment = {**os.environ, **{f"VIT_ATTENTION_{name}": value for name, value in settings.items()}}
        start = "from service.cli.main import main; main()"
        flags = ["--model-store", str(ROOT / "model_store"), "--model", "shapes-tiny", "--device", "cpu"]
        flags += ["--port", str(self.port), "--log-level", "warning"]
        command = [sys.executable, "-c", start, "serve", *flags]
        with log.open("w") as stderr:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=stderr)
        self.rest = self.peak = self._base = self._log_read = 0
        self._watched = psutil.Process(self.process.pid)
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        """Waits until it is ready, warms it up and takes its size at rest."""
        self._wait_ready()
        self.good = picture()
        for route in itertools.islice(itertools.cycle(ROUTES), 48):
            assert self.post(self.good, route).status == 200
        time.sleep(0.2)
        self.truth = {route: labels(self.post(self.good, route)) for route in ROUTES}
        self.rest = self._watched.memory_info().rss
        self.watch_anew()
        self._watcher.start()

    def stop(self) -> None:
        """Ends the process, and not before it has answered what it accepted."""
        self._ended.set()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(40)
        finally:
            self.process.kill()
            self.process.wait()

    def wire(self, deadline_s: float = DEADLINE_S) -> Wire:
        return Wire(self.port, deadline_s)

    def exchange(self, request: bytes, deadline_s: float = DEADLINE_S) -> Answer:
        """What comes back for these bytes on a connection of their own."""
        with self.wire(deadline_s) as wire:
            wire.send(request)
            return wire.answer()

    def post(self, body: bytes, route: str = "/predict", *headers: str) -> Answer:
        """What comes back for a body on a connection of its own."""
        return self.exchange(request(body, route, *headers))

    def post_all(self, requests: Iterable[bytes], connections: int = 4) -> "Counter[int]":
        """Sends requests over kept connections; how often each status came.

        Whatever refuses no image fails at once: another status, a 503 that is not of a full queue, a
        connection that is closed.
        """
        lock, left = threading.Lock(), iter(requests)
        seen: Counter[int] = Counter()

        def next_request() -> bytes | None:
            with lock:
                return next(left, None)

        def work() -> None:
            with self.wire() as wire:
                while (raw := next_request()) is not None:
                    assert wire.send(raw)
                    answer = wire.answer()
                    refused = answer.problem == "queue-full" and "retry-after" in answer.headers
                    assert answer.status in (200, 400, 413, 415) or refused, (answer, raw[:300])
                    with lock:
                        seen[answer.status] += 1

        with ThreadPoolExecutor(connections) as threads:
            for done in [threads.submit(work) for _ in range(connections)]:
                done.result()
        return seen

    def assert_unharmed(self) -> None:
        """It lives, answers a good picture as before, never failed inside and never grew too large."""
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        for route, truth in self.truth.items():
            assert labels(self.post(self.good, route)) == truth
        log = self.log.read_bytes()[self._log_read :].decode()
        assert "Traceback" not in log, log[-3000:]
        assert self.growth <= MOST_GROWTH, f"{self.growth / 2**20:.0f} MB more than at rest"

    def watch_anew(self) -> None:
        """Forgets the peak and the log so far."""
        self._log_read = self.log.stat().st_size
        self.peak = self._watched.memory_info().rss
        self._base = self.rest if self.peak <= self.rest + MOST_GROWTH else self.peak

    @property
    def growth(self) -> int:
        """Bytes by which it was larger than at rest, at its largest.

        If it was too large when the watch began, only what came on top: one culprit fails one test.
        """
        return self.peak - self._base

    def _watch(self) -> None:
        watched = psutil.Process(self.process.pid)  # of its own: psutil's object is for one thread
        with contextlib.suppress(psutil.NoSuchProcess):
            while not self._ended.wait(SAMPLE_S):
                self.peak = max(self.peak, watched.memory_info().rss)

    def _wait_ready(self) -> None:
        ends = time.monotonic() + 120
        while time.monotonic() < ends and self.process.poll() is None:
            with contextlib.suppress(OSError):
                if self.exchange(b"GET /readyz HTTP/1.1\r\nHost: test\r\n\r\n").status == 200:
                    return
            time.sleep(0.1)
        raise AssertionError(self.log.read_text()[-3000:])


@contextlib.contextmanager
def watched_server(folder: Path, **settings: str) -> Iterator[WatchedServer]:
    server = WatchedServer(folder / "log", **settings)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def request(body: bytes, route: str = "/predict", *headers: str) -> bytes:
    lines = [f"POST {route} HTTP/1.1", "Host: test", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def chunked(route: str = "/predict", *headers: str) -> bytes:
    """The head of a request whose body comes in chunks."""
    lines = [f"POST {route} HTTP/1.1", "Host: test", "Transfer-Encoding: chunked", *headers, "", ""]
    return "\r\n".join(lines).encode()


def labels(answer: Answer) -> list[dict[str, object]]:
    assert answer.status == 200, answer
    found: list[dict[str, object]] = json.loads(answer.body)["labels"]
    return found


def picture() -> bytes:
    """One of the drawn samples."""
    return (ROOT / "samples" / "striped.jpg").read_bytes()


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
