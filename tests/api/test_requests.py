"""What goes in: bodies, forms, options, limits; and the problem that a bad one becomes."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from service.errors import InvalidParameter, QueueFull

PREFIX = "urn:vit-attention:problem:"


def form(*parts: tuple[str, str | None, bytes], boundary: str = "x") -> tuple[bytes, dict[str, str]]:
    body = b""
    for name, filename, data in parts:
        file = f'; filename="{filename}"' if filename else ""
        body += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode()
        body += data + b"\r\n"
    return body + f"--{boundary}--\r\n".encode(), {
        "Content-Type": f"multipart/form-data; boundary={boundary}"
    }


def assert_problem(response, status: int, kind: str, said: str = "") -> None:
    assert response.status_code == status
    assert response.headers["Content-Type"] == "application/problem+json"
    problem = response.json()
    assert problem["type"] == PREFIX + kind
    assert problem["status"] == status
    assert problem["title"]
    assert said in problem["detail"]
    assert problem["instance"] == response.url.path
    assert problem["request_id"] == response.headers["X-Request-ID"]


@pytest.mark.parametrize("kind", ["image/jpeg", "Image/X-Odd; q=1", "application/octet-stream", None])
async def test_raw_bodies(client, engine, jpeg, kind):
    headers = {"Content-Type": kind} if kind else {}
    assert (await client.post("/predict", content=jpeg, headers=headers)).status_code == 200
    assert engine.asked[0]["data"] == jpeg


@pytest.mark.parametrize("name", ["image", "file"])
async def test_forms(client, engine, jpeg, name):
    assert (await client.post("/predict", files={name: ("cat.jpg", jpeg)})).status_code == 200
    assert engine.asked[0]["data"] == jpeg


async def test_a_large_form_stays_in_memory(client, engine, monkeypatch):
    monkeypatch.setattr("tempfile.TemporaryFile", None)
    data = b"\xff" * 190_000
    assert (await client.post("/predict", files={"image": ("cat.jpg", data)})).status_code == 200
    assert engine.asked[0]["data"] == data


async def test_two_images(client, jpeg):
    files = [("image", ("a.jpg", jpeg)), ("file", ("b.jpg", jpeg))]
    assert_problem(await client.post("/predict", files=files), 400, "bad-request", "2 images")


async def test_an_empty_body(client):
    assert_problem(await client.post("/predict"), 400, "bad-image", "no bytes")
    body, headers = form(("image", "a.jpg", b""))
    assert_problem(await client.post("/predict", content=body, headers=headers), 400, "bad-image", "no bytes")


async def test_what_curl_sends_without_a_header_is_told_the_remedy(client, jpeg):
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    response = await client.post("/predict", content=jpeg, headers=headers)
    assert_problem(response, 415, "unsupported-media-type", "-H 'Content-Type: image/jpeg'")


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([("photo", "a.jpg", b"1")], "'photo'"),
        ([("image", "a.jpg", b"1"), ("top_k", None, b"1")], "query"),
        ([("image", None, b"cat.jpg")], "mind the @"),
        ([], "no file field"),
        ([("image", f"{i}.jpg", b"1") for i in range(40)], "more than 16 fields"),
    ],
)
async def test_odd_forms(client, parts, said):
    body, headers = form(*parts)
    response = await client.post("/predict", content=body, headers=headers)
    assert_problem(response, 400, "bad-request", said)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"garbage", "multipart/form-data; boundary=x"),
        (b"--x\r\ngarbage", "multipart/form-data"),
        (b"", "multipart/form-data; boundary="),
        (b"--x\r\nContent-Disposition: form-data\r\n\r\n\r\n--x--", "multipart/form-data; boundary=x"),
        (b"--x\r\n" + b"A: b\r\n" * 5000, "multipart/form-data; boundary=x"),
        (
            b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\ncut',
            "multipart/form-data; boundary=x",
        ),
        (b"--x--", "multipart/form-data; boundary=x; charset=\x00"),
        (b"--" + b"y" * 500, "multipart/form-data; boundary=" + "y" * 500),
    ],
)
async def test_malformed_forms(client, body, kind):
    response = await client.post("/predict", content=body, headers={"Content-Type": kind})
    assert_problem(response, 400, "bad-request")


async def chunks(total: int, sent: list[int]) -> AsyncIterator[bytes]:
    for _ in range(total // 10_000):
        sent.append(10_000)
        yield b"\xff" * 10_000


async def test_a_body_over_the_limit_is_refused_while_it_is_read(client, engine):
    sent: list[int] = []
    response = await client.post("/predict", content=chunks(210_000, sent))
    assert_problem(response, 413, "too-large", "200000 bytes")
    assert not engine.asked


async def test_a_form_over_the_limit_is_refused(client):
    files = {"image": ("a.jpg", b"\xff" * 200_000)}
    assert_problem(await client.post("/predict", files=files), 413, "too-large")


async def test_a_body_of_the_limit_is_taken(client):
    assert (await client.post("/predict", content=b"\xff" * 200_000)).status_code == 200


@pytest.mark.parametrize(
    ("path", "parameter", "said"),
    [
        ("/predict?top_k=0", "top_k", "1"),
        ("/predict?top_k=8", "top_k", "7 classes"),
        ("/predict?top_k=4&model=other", "top_k", "3 classes"),
        ("/predict?top_k=many", "top_k", "many"),
        ("/predict?topk=3", "topk", "top_k, model"),
        ("/predict?overlay=masked", "overlay", "top_k, model"),
        ("/predict?model=", "model", "1"),
        ("/attention/rollout?discard_ratio=nan", "discard_ratio", "finite"),
        ("/attention/rollout?discard_ratio=1e999", "discard_ratio", "finite"),
        ("/attention/rollout?discard_ratio=1", "discard_ratio", "less than 1"),
        ("/attention/rollout?discard_ratio=-0.1", "discard_ratio", "0"),
        ("/attention/rollout?head_fusion=median", "head_fusion", "'mean', 'max' or 'min'"),
        ("/attention/rollout?overlay=blue", "overlay", "heatmap"),
        ("/attention/rollout?grid=maybe", "grid", "maybe"),
        ("/attention/rollout?grids=true", "grids", "grid"),
        ("/attention/blocks?layout=spiral", "layout", "spiral"),
        ("/attention/blocks?max_side=-1", "max_side", "0"),
    ],
)
async def test_bad_parameters_are_named(client, jpeg, path, parameter, said):
    response = await client.post(path, content=jpeg)
    assert_problem(response, 422, "invalid-parameter", said)
    assert [entry["parameter"] for entry in response.json()["errors"]] == [parameter]
    assert said in response.json()["errors"][0]["detail"]


@pytest.mark.parametrize("wanted", ["soon", "0", "-1", "nan", "inf", ""])
async def test_a_senseless_timeout_is_refused(client, jpeg, wanted):
    response = await client.post("/predict", content=jpeg, headers={"X-Request-Timeout": wanted})
    assert_problem(response, 422, "invalid-parameter")
    assert response.json()["errors"][0]["parameter"] == "X-Request-Timeout"


@pytest.mark.parametrize(("wanted", "given"), [("0.5", 0.5), ("99", 5)])
async def test_a_timeout_is_handed_on_and_capped(client, engine, jpeg, wanted, given):
    await client.post("/predict", content=jpeg, headers={"X-Request-Timeout": wanted})
    assert given - 0.3 < engine.asked[0]["timeout_s"] <= given


async def test_a_slow_sender_meets_the_deadline(client):
    async def slow() -> AsyncIterator[bytes]:
        yield b"\xff"
        await asyncio.sleep(30)

    response = await client.post("/predict", content=slow(), headers={"X-Request-Timeout": "0.1"})
    assert_problem(response, 504, "deadline-exceeded", "0.1 s")


async def test_an_unknown_model(client, jpeg):
    assert_problem(await client.post("/predict?model=nobody", content=jpeg), 404, "unknown-model", "nobody")


async def test_unknown_routes_and_methods(client):
    assert_problem(await client.get("/nowhere"), 404, "not-found", "/nowhere")
    response = await client.get("/predict")
    assert_problem(response, 405, "method-not-allowed", "POST")
    assert response.headers["Allow"] == "POST"


async def test_not_ready(client, engine, jpeg):
    engine.not_ready = "loading"
    response = await client.post("/predict", content=jpeg)
    assert_problem(response, 503, "not-ready", "loading")
    assert response.headers["Retry-After"] == "1"


async def test_retry_after_is_rounded_up(client, engine, jpeg):
    engine.raises = QueueFull("Full.", retry_after=2.1)
    response = await client.post("/predict", content=jpeg)
    assert_problem(response, 503, "queue-full")
    assert response.headers["Retry-After"] == "3"


async def test_the_engines_errors_keep_their_parameters(client, engine, jpeg):
    engine.raises = InvalidParameter("No.", errors=[{"parameter": "model", "detail": "No."}])
    response = await client.post("/predict", content=jpeg)
    assert response.json()["errors"] == [{"parameter": "model", "detail": "No."}]


async def test_an_unexpected_error_tells_nothing_of_the_inside(client, engine, jpeg):
    engine.raises = RuntimeError("secret")
    response = await client.post("/predict", content=jpeg)
    assert_problem(response, 500, "internal-error")
    assert "secret" not in response.text
    assert response.headers["Server-Timing"]
