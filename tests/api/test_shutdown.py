"""How a server process ends: on one signal, on two, on a lost device. Real processes, signals and sockets."""

import io
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from PIL import Image

LAUNCHER = Path(__file__).parent / "faulty_server.py"
ROOT = Path(__file__).parent.parent.parent


class ServerProcess:
    """A server process whose device takes orders through a file."""

    def __init__(self, store: Path, folder: Path, *settings: str) -> None:
        self.orders = folder / "orders"
        self.order("compute")
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, str(LAUNCHER), str(store), str(self.orders), str(port), *settings]
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stderr=log)
        self.client = httpx.Client(base_url=self.url, timeout=60)
        self.threads = ThreadPoolExecutor(16)

    def order(self, order: str) -> None:
        self.orders.with_suffix(".entered").unlink(missing_ok=True)
        written = self.orders.with_suffix(".written")
        written.write_text(order)
        written.rename(self.orders)

    def ask(self) -> "Future[httpx.Response]":
        return self.threads.submit(httpx.post, self.url + "/predict", content=picture(), timeout=60)

    def status(self, path: str) -> int:
        """Over the connection that is kept alive."""
        return self.client.get(path).status_code

    def refused(self) -> bool:
        """Whether nobody listens any more."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", int(self.url.rpartition(":")[2]))) != 0

    def hold(self, requests: int) -> "list[Future[httpx.Response]]":
        """So many requests, one of them in a batch that waits for another order, the rest behind it."""
        self.order("hold")
        asked = [self.ask() for _ in range(requests)]
        until(lambda: self.held() == requests and self.orders.with_suffix(".entered").exists())
        return asked

    def held(self) -> int:
        lines = self.client.get("/metrics").text.splitlines()
        return int(float(next(line for line in lines if 'held{budget="requests"}' in line).split()[1]))


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (60, 40), "red").save(buffer, "PNG")
    return buffer.getvalue()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


@contextmanager
def server_process(store: Path, folder: Path, *settings: str) -> Iterator[ServerProcess]:
    server = ServerProcess(store, folder, *settings)

    def ready() -> bool:
        assert server.process.poll() is None, server.log.read_text()
        try:
            return server.status("/readyz") == 200
        except httpx.TransportError:
            return False

    try:
        until(ready)
        yield server
    finally:
        server.process.kill()
        server.process.wait()
        server.client.close()
        server.threads.shutdown()


@pytest.fixture
def server(tiny_store: Path, tmp_path: Path) -> Iterator[ServerProcess]:
    with server_process(tiny_store, tmp_path) as server:
        yield server


@pytest.fixture
def draining(tiny_store: Path, tmp_path: Path) -> Iterator[ServerProcess]:
    with server_process(tiny_store, tmp_path, "drain_s=1.5") as server:
        yield server


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_one_signal_answers_everything_accepted_and_exits_with_0(server: ServerProcess, sent: int) -> None:
    asked = server.hold(12)
    server.process.send_signal(sent)
    until(server.refused)
    assert not any(each.done() for each in asked)
    server.order("compute")
    assert [each.result().status_code for each in asked] == [200] * 12
    assert server.process.wait(30) == 0


def test_a_balancer_sees_a_draining_server_and_its_connections_are_refused_new_work(
    draining: ServerProcess,
) -> None:
    asked = draining.hold(3)
    draining.process.send_signal(signal.SIGTERM)
    until(lambda: draining.status("/readyz") == 503)
    fresh = httpx.get(draining.url + "/readyz")  # it still listens
    assert (fresh.status_code, fresh.json()["detail"]) == (503, "Not ready: draining.")
    assert draining.status("/healthz") == 200
    refusal = draining.client.post("/predict", content=picture())
    assert refusal.status_code == 503
    assert refusal.json()["type"] == "urn:vit-attention:problem:not-ready"
    assert refusal.headers["Retry-After"] == "1"
    draining.order("compute")
    assert [each.result().status_code for each in asked] == [200] * 3
    assert draining.process.wait(30) == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_now(server: ServerProcess, second: int) -> None:
    asked = server.hold(3)
    server.process.send_signal(signal.SIGTERM)
    until(server.refused)
    server.process.send_signal(second)
    assert server.process.wait(10) == 128 + second
    assert all(isinstance(each.exception(10), httpx.TransportError) for each in asked)


def test_a_lost_device_answers_what_waits_and_ends_the_process_with_an_error(server: ServerProcess) -> None:
    asked = server.hold(12)
    server.order("lose")
    assert [each.result().status_code for each in asked] == [503] * 12
    assert server.process.wait(30) not in (0, None)
    assert "The device is lost: CUDA error: an illegal memory access" in server.log.read_text()


def test_a_device_thread_that_dies_ends_the_process_with_an_error(server: ServerProcess) -> None:
    asked = server.hold(12)
    server.order("die")
    assert [each.result().status_code for each in asked] == [503] * 12
    assert server.process.wait(30) not in (0, None)


def test_a_stalled_device_is_not_ready_until_it_moves_again(tiny_store: Path, tmp_path: Path) -> None:
    with server_process(tiny_store, tmp_path, "stall_s=0.2") as server:
        (asked,) = server.hold(1)
        until(lambda: server.status("/readyz") == 503)
        assert server.client.get("/readyz").json()["detail"] == "Not ready: stalled."
        assert server.status("/healthz") == 200
        server.order("compute")
        assert asked.result().status_code == 200
        until(lambda: server.status("/readyz") == 200)
