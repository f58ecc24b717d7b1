"""Servers in processes of their own: ours and the peers', of which only one runs at a time."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.models import NAME
from service.load.answers import Question

READY_S = 180
TASKS = ("predict", "rollout", "blocks")
PATHS = {"predict": "/predict", "rollout": "/attention/rollout", "blocks": "/attention/blocks"}
ROOT = Path(__file__).parent.parent
OURS = "import sys; from service.cli.main import main; main()"


@dataclass(frozen=True)
class Kind:
    """A server that can be started.

    command: without the port.
    needs: packages that it can't do without.
    """

    name: str
    command: tuple[str, ...]
    ready: str
    needs: tuple[str, ...] = ()

    @property
    def missing(self) -> str:
        """Why it can't be started; empty where it can."""
        gone = [name for name in self.needs if importlib.util.find_spec(name) is None]
        return f"{', '.join(gone)} is not installed" if gone else ""


def ours(name: str, store: Path, *flags: str, model: str = NAME) -> Kind:
    """`vit-attention serve` with the model of a store."""
    serve = ("-c", OURS, "serve", "--model-store", str(store), "--model", model, "--log-level", "warning")
    return Kind(name, (*serve, *flags), "/readyz")


def litserve(model: str) -> Kind:
    command = ("-m", "benchmarks.peers.litserve_app", "--model", model)
    return Kind("LitServe + transformers", command, "/health", ("litserve", "transformers"))


def plain_fastapi(model: str) -> Kind:
    command = ("-m", "benchmarks.peers.plain_fastapi_app", "--model", model)
    return Kind("FastAPI + transformers", command, "/health", ("transformers",))


class Server:
    """A running server.

    start_s: seconds from its start to its being ready.
    """

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - stop closes it
        began = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, *kind.command, "--port", str(port)],
            stdout=self.log,
            stderr=self.log,
            env=_environment(),
            cwd=ROOT,
            start_new_session=True,
        )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise
        self.start_s = time.perf_counter() - began

    def _wait(self) -> None:
        give_up = time.monotonic() + READY_S
        with httpx.Client(trust_env=False, verify=False) as client:
            while time.monotonic() < give_up and self.process.poll() is None:
                with contextlib.suppress(httpx.HTTPError):
                    if client.get(self.url + self.kind.ready).status_code == 200:
                        return
                time.sleep(0.02)
        raise RuntimeError(f"{self.kind.name} did not become ready: {self.said()}")

    def said(self) -> str:
        """The end of its log."""
        self.log.seek(0)
        return self.log.read()[-2000:].decode(errors="replace")

    def pause(self) -> None:
        """Stops it and its children where they stand: even idle, some poll."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.killpg(self.process.pid, signal.SIGCONT)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Runs inside the with block, and is paused again after it."""
        self.resume()
        try:
            yield
        finally:
            self.pause()

    def stop(self) -> None:
        """Ends it and its children."""
        with contextlib.suppress(ProcessLookupError):
            self.resume()
            os.killpg(self.process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.log.close()

    def questions(self, task: str, files: Sequence[bytes], query: str = "") -> Iterator[Question]:
        """Requests without end, the files in turn, as this kind of server takes them."""
        return itertools.cycle([self._question(task, file, query) for file in files])

    def _question(self, task: str, file: bytes, query: str) -> Question:
        if self.kind.ready == "/readyz":
            return Question(f"{self.url}{PATHS[task]}{query}", file, {"Content-Type": "image/jpeg"})
        path = "/predict" if "litserve" in self.kind.needs else f"/{task}"
        form = httpx.Request(
            "POST", self.url, data={"task": task}, files={"image": ("photo.jpg", file, "image/jpeg")}
        )
        return Question(self.url + path, form.read(), {"Content-Type": form.headers["Content-Type"]})


@contextlib.contextmanager
def started(kinds: Sequence[Kind]) -> Iterator[dict[str, Server]]:
    """The servers that can be started, by name and paused, one after the other; all end with the block."""
    servers: dict[str, Server] = {}
    with contextlib.ExitStack() as stack:
        for kind in kinds:
            if not kind.missing:
                print(f"  starting {kind.name}", file=sys.stderr)
                servers[kind.name] = server = Server(kind)
                stack.callback(server.stop)
                server.pause()
        yield servers


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _environment() -> dict[str, str]:
    """This process's, less the settings of a service that it may know."""
    return {name: value for name, value in os.environ.items() if not name.startswith("VIT_ATTENTION_")}
