"""Each row of the status table, and every odd image, through a server process as users start it."""

import base64
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from service.models.spec import Architecture
from service.models.vit import VisionTransformer
from service.store.registry import Registry
from service.types import Preprocess
from service.weights.checkpoint import Checkpoint

CLASSES = 5


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a tiny ViT of random weights."""
    root = tmp_path_factory.mktemp("store")
    torch.manual_seed(0)
    architecture = Architecture((32, 32), 8, width=24, depth=3, heads=3, mlp_width=48, classes=CLASSES)
    preprocess = Preprocess((32, 32), (32, 32), "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    state = VisionTransformer(architecture).state_dict()
    labels = [f"class {i}" for i in range(CLASSES)]
    Registry(root).add("tiny", Checkpoint(architecture, preprocess, labels, state), "random", None)
    return root


@contextmanager
def serving(store: Path, **settings: str) -> Iterator[httpx.Client]:
    """`vit-attention serve` in a process of its own, once it is ready; ended with SIGTERM."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
    environment = {**os.environ, **{f"VIT_ATTENTION_{name}": value for name, value in settings.items()}}
    start = "from service.cli.main import main; main()"
    flags = ["--model-store", str(store), "--model", "tiny", "--port", port, "--device", "cpu"]
    command = [sys.executable, "-c", start, "serve", *flags]
    with (
        subprocess.Popen(command, env=environment) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):
        try:
            wait_ready(process, client)
            yield client
            assert process.poll() is None, "the server ended"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def wait_ready(process: "subprocess.Popen[bytes]", client: httpx.Client) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    pytest.fail("the server did not become ready")


@pytest.fixture(scope="module")
def server(store: Path) -> Iterator[httpx.Client]:
    with serving(store, MAX_QUEUE="2") as client:
        yield client


@pytest.fixture(scope="module")
def patient_server(store: Path) -> Iterator[httpx.Client]:
    with serving(store) as client:
        yield client


def picture(width: int = 60, height: int = 40, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(buffer, kind)
    return buffer.getvalue()


def blank(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (side, side)).save(buffer, "PNG")
    return buffer.getvalue()


def opened(data: bytes) -> tuple[str, tuple[int, int]]:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return image.mode, image.size


def assert_problem(response: httpx.Response, status: int, kind: str) -> None:
    assert (response.status_code, response.json()["type"]) == (status, f"urn:vit-attention:problem:{kind}")
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.headers["X-Request-ID"] == response.json()["request_id"]
    assert "total;dur=" in response.headers["Server-Timing"]


class TestAnswers:
    def test_predict(self, server):
        body = server.post("/predict?top_k=5", content=picture()).json()
        assert body["image"] == {"width": 60, "height": 40, "seen": [0, 0, 60, 40]}
        assert re.fullmatch("sha256:[0-9a-f]{64}", body["model"]["digest"])
        scores = [label["score"] for label in body["labels"]]
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) == pytest.approx(1)

    def test_rollout(self, server):
        url = "/attention/rollout?overlay=heatmap&grid=true"
        response = server.post(url, files={"image": ("cat.jpg", picture())})
        rollout = response.json()["rollout"]
        assert opened(base64.b64decode(rollout["mask"])) == ("L", (60, 40))
        assert opened(base64.b64decode(rollout["overlay"])) == ("RGB", (60, 40))
        assert np.shape(rollout["grid"]) == tuple(rollout["grid_size"]) == (4, 4)
        assert rollout["max"] == np.max(rollout["grid"])
        stages = [entry.split(";")[0] for entry in response.headers["Server-Timing"].split(", ")]
        assert set(stages) == {"decode", "queue", "model", "explain", "render", "total"}

    def test_blocks(self, server):
        blocks = server.post("/attention/blocks?grids=true", content=picture()).json()["blocks"]
        assert opened(base64.b64decode(blocks["canvas"])) == ("P", (180, 40))
        assert np.shape(blocks["grids"]) == (3, 4, 4)
        assert (blocks["count"], blocks["columns"], blocks["scale"]) == (3, 3, 1)
        assert blocks["panel"] == {"width": 60, "height": 40}

    @pytest.mark.parametrize(
        ("path", "mode", "size"),
        [
            ("/attention/rollout", "L", (60, 40)),
            ("/attention/rollout?overlay=masked", "RGB", (60, 40)),
            ("/attention/blocks?layout=grid&max_side=30", "P", (60, 40)),
        ],
    )
    def test_the_picture_itself(self, server, path, mode, size):
        response = server.post(path, content=picture(), headers={"Accept": "image/png"})
        assert opened(response.content) == (mode, size)
        assert response.headers["X-Labels"].startswith('[{"index": ')

    def test_models(self, server):
        (model,) = server.get("/models").json()["models"]
        assert (model["name"], model["classes"], model["blocks"], model["heads"]) == ("tiny", CLASSES, 3, 3)
        assert model["explains"] == ["rollout", "blocks"]

    def test_metrics(self, server):
        server.post("/predict", content=picture())
        text = server.get("/metrics").text
        for name in ("batch_size_count", "forward_seconds_count", "requests_total", "queue_length"):
            assert f"vit_attention_{name}" in text


class TestStatuses:
    def test_400_empty(self, server):
        assert_problem(server.post("/predict"), 400, "bad-image")

    @pytest.mark.parametrize("data", [b"no image", picture()[:200], picture(kind="PNG")[:200]])
    def test_400_undecodable(self, server, data):
        assert_problem(server.post("/attention/rollout", content=data), 400, "bad-image")

    def test_400_two_images(self, server):
        files = [("image", picture()), ("image", picture())]
        assert_problem(server.post("/attention/blocks", files=files), 400, "bad-request")

    def test_401(self, store):
        with serving(store, API_KEYS="secret,other") as client:
            assert_problem(client.post("/predict", content=picture()), 401, "unauthorized")
            keyed = client.post("/predict", content=picture(), headers={"X-API-Key": "secret"})
            assert keyed.status_code == 200

    def test_404_route(self, server):
        assert_problem(server.get("/nowhere"), 404, "not-found")

    @pytest.mark.parametrize("name", ["nobody", "../tiny", "%2e%2e%2ftiny", "/etc"])
    def test_404_model(self, server, name):
        assert_problem(server.post(f"/predict?model={name}", content=picture()), 404, "unknown-model")

    def test_405(self, server):
        response = server.get("/predict")
        assert_problem(response, 405, "method-not-allowed")
        assert response.headers["Allow"] == "POST"

    def test_413_announced(self, server):
        assert_problem(server.post("/predict", content=bytes(21 * 2**20)), 413, "too-large")

    def test_413_while_read(self, server):
        def endless() -> Iterator[bytes]:
            while True:
                yield bytes(2**16)

        assert_problem(server.post("/predict", content=endless()), 413, "too-large")

    def test_413_pixels(self, server):
        assert_problem(server.post("/predict", content=blank(8001)), 413, "too-large")

    def test_415_content_type(self, server):
        response = server.post("/predict", data={"image": "cat.jpg"})
        assert_problem(response, 415, "unsupported-media-type")

    def test_415_image_format(self, server):
        response = server.post("/predict", content=b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
        assert_problem(response, 415, "unsupported-media-type")

    @pytest.mark.parametrize("query", ["top_k=0", f"top_k={CLASSES + 1}", "topk=1"])
    def test_422(self, server, query):
        assert_problem(server.post(f"/predict?{query}", content=picture()), 422, "invalid-parameter")

    def test_503_queue_full(self, server):
        large = picture(2000, 1500)
        with ThreadPoolExecutor(8) as threads:
            asked = [threads.submit(server.post, "/attention/blocks", content=large) for _ in range(8)]
            responses = [future.result() for future in asked]
        full = [response for response in responses if response.status_code != 200]
        assert 0 < len(full) < 8
        for response in full:
            assert_problem(response, 503, "queue-full")
            assert int(response.headers["Retry-After"]) >= 1

    def test_504(self, server):
        headers = {"X-Request-Timeout": "0.0001"}
        response = server.post("/predict", content=picture(), headers=headers)
        assert_problem(response, 504, "deadline-exceeded")


class TestOddImages:
    @pytest.mark.parametrize("path", ["/attention/rollout", "/attention/blocks?max_side=64"])
    def test_no_odd_image_harms_the_server(self, patient_server, test_data, path):
        def status(file: Path) -> int:
            response = patient_server.post(path, content=file.read_bytes())
            assert response.status_code in (200, 400, 413, 415), (file.name, response.text)
            return response.status_code

        before = patient_server.post("/predict", content=picture()).json()
        files = sorted(file for file in (test_data / "odd").rglob("*") if file.is_file())
        with ThreadPoolExecutor(4) as threads:
            statuses = Counter(threads.map(status, files))
        assert len(files) > 600
        assert statuses[200] > 200
        assert patient_server.get("/healthz").status_code == 200
        assert patient_server.post("/predict", content=picture()).json() == before
