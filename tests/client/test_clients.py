"""Both clients, the same tests: `ask` calls a method of the one or the other over a recorded stand-in."""

import asyncio
import base64
import inspect
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import PIL.Image
import pytest

from service import errors
from service.api import schemas
from service.client import AsyncClient, Client, Png, results
from service.errors import DeadlineExceeded, InvalidParameter, ServiceError, Unavailable

GREY = np.arange(35, dtype=np.uint8).reshape(5, 7)


def png(array: np.ndarray) -> str:
    file = io.BytesIO()
    PIL.Image.fromarray(array).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


HEAD = {
    "model": {"name": "m", "family": "vit", "digest": "sha256:0"},
    "image": {"width": 7, "height": 5, "seen": [0, 0, 7, 5]},
    "labels": [{"index": 2, "label": "striped", "score": 0.75}],
}
ROLLOUT = {
    "mask": png(GREY),
    "overlay": png(np.stack([GREY] * 3, axis=2)),
    "grid": [[0.5, 0.25, 1.0]],
    "grid_size": [1, 3],
    "min": 0.25,
    "max": 1.0,
    "head_fusion": "max",
    "discard_ratio": 0.5,
}
BLOCKS = {
    "canvas": png(np.stack([GREY] * 3, axis=2)),
    "count": 2,
    "layout": "grid",
    "columns": 2,
    "panel": {"width": 3, "height": 5},
    "scale": 0.5,
    "grid_size": [1, 3],
    "grids": [[[0.5, 0.25, 1.0]], [[0.0, 0.125, 1.0]]],
    "min": [0.25, 0.0],
    "max": [1.0, 1.0],
}
CARD = {
    **HEAD["model"],  # type: ignore[dict-item]
    "source": "here",
    "licence": None,
    "input_size": [35, 21],
    "classes": 5,
    "blocks": 3,
    "heads": 3,
    "device": "cpu",
    "precision": "fp32",
    "runtime": "torch",
    "default": True,
    "explains": ["rollout"],
}
ANSWERS = {
    "/predict": HEAD,
    "/attention/rollout": {**HEAD, "rollout": ROLLOUT},
    "/attention/blocks": {**HEAD, "blocks": BLOCKS},
    "/models": {"models": [CARD]},
}


class StandIn:
    """Answers as the service does, after `failures`; keeps the requests."""

    def __init__(self, *failures: httpx.Response | Exception) -> None:
        self.failures = list(failures)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if self.failures:
            failure = self.failures.pop(0)
            if isinstance(failure, Exception):
                raise failure
            return failure
        return httpx.Response(200, json=ANSWERS[request.url.path])

    @property
    def request(self) -> httpx.Request:
        (request,) = self.requests
        return request


Ask = Callable[..., Any]


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """ask(stand_in, "predict", image, ..., client={...})"""

    def blocking(stand_in: StandIn, method: str, *args: Any, client: Any = None, **kwargs: Any) -> Any:
        with Client("http://service/", transport=httpx.MockTransport(stand_in), **client or {}) as it:
            return getattr(it, method)(*args, **kwargs)

    def awaited(stand_in: StandIn, method: str, *args: Any, client: Any = None, **kwargs: Any) -> Any:
        async def run() -> Any:
            transport = httpx.MockTransport(stand_in)
            async with AsyncClient("http://service/", transport=transport, **client or {}) as it:
                return await getattr(it, method)(*args, **kwargs)

        return asyncio.run(run())

    return blocking if request.param == "sync" else awaited


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that a client waited between its tries; none pass."""
    seconds: list[float] = []
    really = asyncio.sleep

    async def fake(delay: float) -> None:
        seconds.append(delay)
        await really(0)

    monkeypatch.setattr("httpx_retries.retry.time.sleep", seconds.append)
    monkeypatch.setattr("httpx_retries.retry.asyncio.sleep", fake)
    return seconds


def test_predict(ask: Ask) -> None:
    stand_in = StandIn()
    answer = ask(stand_in, "predict", b"image")
    assert answer.labels == [results.Label(2, "striped", 0.75)]
    assert (answer.width, answer.height, answer.model.name) == (7, 5, "m")
    assert stand_in.request.method == "POST"
    assert str(stand_in.request.url) == "http://service/predict"
    assert stand_in.request.content == b"image"
    assert stand_in.request.headers["Content-Type"] == "application/octet-stream"


def test_rollout_pictures_open(ask: Ask, tmp_path: Path) -> None:
    stand_in = StandIn()
    answer = ask(
        stand_in, "rollout", b"image", 3, "max", discard_ratio=0.5, overlay="masked", grid=True, model="m"
    )
    np.testing.assert_array_equal(answer.mask.array(), GREY)
    assert answer.overlay.image().mode == "RGB"
    np.testing.assert_array_equal(answer.grid, np.float32([[0.5, 0.25, 1.0]]))
    assert (answer.grid_size, answer.head_fusion, answer.discard_ratio) == ((1, 3), "max", 0.5)
    answer.mask.save(tmp_path / "mask.png")
    np.testing.assert_array_equal(np.asarray(PIL.Image.open(tmp_path / "mask.png")), GREY)
    assert dict(stand_in.request.url.params) == {
        "top_k": "3",
        "head_fusion": "max",
        "discard_ratio": "0.5",
        "overlay": "masked",
        "grid": "true",
        "model": "m",
    }


def test_rollout_without_extras(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = {**HEAD, "rollout": {**ROLLOUT, "overlay": None, "grid": None}}
    monkeypatch.setitem(ANSWERS, "/attention/rollout", plain)
    answer = ask(StandIn(), "rollout", b"image")
    assert answer.overlay is None
    assert answer.grid is None


def test_blocks(ask: Ask) -> None:
    stand_in = StandIn()
    answer = ask(stand_in, "blocks", b"image", layout="grid", grids=True, max_side=3)
    assert answer.canvas.array().shape == (5, 7, 3)
    assert answer.grids.shape == (2, 1, 3)
    assert (answer.count, answer.columns, answer.panel, answer.scale) == (2, 2, results.Size(3, 5), 0.5)
    assert dict(stand_in.request.url.params) == {"layout": "grid", "grids": "true", "max_side": "3"}


def test_models(ask: Ask) -> None:
    (model,) = ask(StandIn(), "models")
    assert (model.name, model.input_size, model.explains) == ("m", (35, 21), ["rollout"])


def test_the_default_top_k_is_left_to_the_server(ask: Ask) -> None:
    stand_in = StandIn()
    ask(stand_in, "predict", b"image", top_k=5)
    assert not stand_in.request.url.params  # which answers with fewer labels for a model of fewer classes


def test_the_results_hold_all_that_the_schemas_declare() -> None:
    for kind, schema, part in [
        (results.Prediction, schemas.PredictResponse, None),
        (results.Rollout, schemas.RolloutResponse, schemas.RolloutMap),
        (results.Blocks, schemas.BlocksResponse, schemas.BlocksCanvas),
    ]:
        declared = {"model", "labels", *schemas.SeenImage.model_fields, *(part.model_fields if part else ())}
        assert set(kind.__dataclass_fields__) == declared
        assert set(schemas.PredictResponse.model_fields) <= set(schema.model_fields)
    assert set(results.ModelInfo.__dataclass_fields__) == set(schemas.ModelCard.model_fields)


@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_the_methods_show_their_parameters(client: type) -> None:
    assert list(inspect.signature(client.rollout).parameters)[:4] == ["self", "image", "top_k", "head_fusion"]
    assert "rollout" in client.rollout.__doc__


def test_the_key_and_the_patience_are_sent(ask: Ask) -> None:
    stand_in = StandIn()
    ask(stand_in, "predict", b"image", client={"api_key": "secret", "timeout": 2.5})
    assert stand_in.request.headers["X-API-Key"] == "secret"
    assert stand_in.request.headers["X-Request-Timeout"] == "2.5"
    assert stand_in.request.extensions["timeout"]["read"] == 2.5


def test_no_key_no_header(ask: Ask) -> None:
    stand_in = StandIn()
    ask(stand_in, "predict", b"image")
    assert "X-API-Key" not in stand_in.request.headers


def family(kind: type[ServiceError]) -> list[type[ServiceError]]:
    return [kind, *(each for child in kind.__subclasses__() for each in family(child))]


def problem(kind: type[ServiceError], **headers: str) -> httpx.Response:
    body = {
        "type": f"urn:vit-attention:problem:{kind.type}",
        "status": kind.status,
        "detail": "What is wrong.",
        "request_id": "abc",
        "errors": [{"parameter": "top_k", "detail": "Too many."}],
    }
    return httpx.Response(
        kind.status, json=body, headers={"Content-Type": "application/problem+json", **headers}
    )


@pytest.mark.parametrize("kind", family(ServiceError))
def test_every_error_is_raised_as_the_server_raised_it(
    ask: Ask, slept: list[float], kind: type[ServiceError]
) -> None:
    stand_in = StandIn(*(problem(kind) for _ in range(9)))
    with pytest.raises(ServiceError) as caught:
        ask(stand_in, "predict", b"image")
    error = caught.value
    assert type(error) is kind
    assert (error.detail, error.status) == ("What is wrong.", kind.status)
    assert error.request_id == "abc"  # type: ignore[attr-defined]
    assert error.errors == [{"parameter": "top_k", "detail": "Too many."}]


@pytest.mark.parametrize(
    ("status", "kind"), [(404, ServiceError), (413, errors.TooLarge), (502, ServiceError)]
)
def test_an_error_of_a_proxy(ask: Ask, status: int, kind: type[ServiceError]) -> None:
    with pytest.raises(ServiceError, match=f"http://service/predict answered {status}") as caught:
        ask(StandIn(httpx.Response(status, html="<h1>no</h1>")), "predict", b"image")
    assert type(caught.value) is kind
    assert caught.value.status == status


@pytest.mark.parametrize("body", [{"html": "hello"}, {"json": [1]}, {"json": HEAD}])
def test_an_answer_of_another_program(ask: Ask, body: Any) -> None:
    with pytest.raises(ServiceError, match="Is it a ViT Attention Service"):
        ask(StandIn(httpx.Response(200, **body)), "rollout", b"image")


def test_retry_after_is_honoured(ask: Ask, slept: list[float]) -> None:
    full = problem(errors.QueueFull, **{"Retry-After": "7"})
    stand_in = StandIn(full, problem(errors.NotReady, **{"Retry-After": "3"}))
    assert ask(stand_in, "predict", b"image").labels
    assert slept == [7, 3]
    assert [request.content for request in stand_in.requests] == [b"image"] * 3


def test_waiting_ends(ask: Ask, slept: list[float]) -> None:
    stand_in = StandIn(*(problem(errors.QueueFull, **{"Retry-After": "40"}) for _ in range(9)))
    with pytest.raises(errors.QueueFull) as caught:
        ask(stand_in, "predict", b"image")
    assert sum(slept) == 60
    assert caught.value.retry_after == 40


@pytest.mark.parametrize("kind", [errors.BadImage, errors.DeadlineExceeded, ServiceError])
def test_other_errors_are_not_tried_again(ask: Ask, kind: type[ServiceError]) -> None:
    stand_in = StandIn(problem(kind))
    with pytest.raises(kind):
        ask(stand_in, "predict", b"image")
    assert len(stand_in.requests) == 1


def test_a_broken_connection_is_tried_again(ask: Ask, slept: list[float]) -> None:
    stand_in = StandIn(httpx.ConnectError("refused"), httpx.RemoteProtocolError("hung up"))
    assert ask(stand_in, "predict", b"image").labels


def test_no_server(ask: Ask, slept: list[float]) -> None:
    stand_in = StandIn(*(httpx.ConnectError("refused") for _ in range(9)))
    with pytest.raises(Unavailable, match=r"connect to http://service \(refused\).*`make serve` starts one"):
        ask(stand_in, "predict", b"image")


def test_no_answer_in_time(ask: Ask) -> None:
    stand_in = StandIn(httpx.ReadTimeout("slow"))
    with pytest.raises(DeadlineExceeded, match=r"http://service did not answer within 2\.5 s"):
        ask(stand_in, "predict", b"image", client={"timeout": 2.5})
    assert len(stand_in.requests) == 1


@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_an_address_needs_its_scheme(client: type) -> None:
    with pytest.raises(InvalidParameter, match="not 'localhost:8000'"):
        client("localhost:8000")


def test_saving_leaves_the_old_file_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Png(b"new").save(path)
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [b"old"]


def test_importing_the_client_loads_no_torch() -> None:
    code = "import sys, service.client; print({'torch', 'cv2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
