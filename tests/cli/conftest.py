import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import PIL.Image
import pytest


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with three pictures, two of them below folders, and what is no picture."""
    folder = tmp_path / "pictures"
    for seed, place in enumerate(["b.png", "cats/a.jpg", "dogs/a.jpg"]):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(seed).integers(0, 256, (29, 37, 3), np.uint8)
        PIL.Image.fromarray(noise).save(folder / place)
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_bytes(b"no picture either")
    return folder


@pytest.fixture(scope="session")
def server(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `vit-attention serve` with the tiny models, in a process of its own."""
    log = tmp_path_factory.mktemp("serve") / "log"
    flags = ["--model", "tiny", "--model", "crop", "--port", "0", "--model-store", str(tiny_store)]
    with log.open("w") as stderr, started("serve", *flags, stderr=stderr) as process:
        yield ready_url(process, log)


@contextlib.contextmanager
def started(*arguments: str, stderr: object = None) -> Iterator[subprocess.Popen[bytes]]:
    """A vit-attention command in a process of its own, which does not outlive the test."""
    code = "from service.cli.main import main; main()"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VIT_ATTENTION_")}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=stderr,  # type: ignore[call-overload]
        env=environment,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def ready_url(process: subprocess.Popen[bytes], log: Path) -> str:
    """Where the server listens, once its log says that it is ready."""
    give_up = time.monotonic() + 120
    while time.monotonic() < give_up and process.poll() is None:
        if "ready" in log.read_text():
            url = next(word for word in log.read_text().split() if word.startswith("url="))[4:]
            assert httpx.get(f"{url}/readyz").status_code == 200
            return url
        time.sleep(0.1)
    pytest.fail(f"the server did not become ready:\n{log.read_text()}")
