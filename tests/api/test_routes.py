import base64
import json

import httpx
import pytest
from fastapi import FastAPI

from service.api.app import create_app
from service.settings import Settings

JPEG = {"Content-Type": "image/jpeg"}


async def test_predict_returns_the_contracts_json(client, engine, jpeg):
    response = await client.post("/predict?top_k=2", content=jpeg, headers=JPEG)
    assert response.status_code == 200
    assert response.json() == {
        "model": {"name": "tiny", "family": "vit", "digest": "sha256:" + "0" * 64},
        "image": {"width": 40, "height": 30, "seen": [5, 0, 35, 30]},
        "labels": [
            {"index": 0, "label": "class 0, 🐱\x7f", "score": 1.0},
            {"index": 1, "label": "class 1, 🐱\x7f", "score": 0.5},
        ],
    }
    assert engine.asked[0]["data"] == jpeg


async def test_top_k_defaults_to_five_or_all_classes(client, engine, jpeg):
    await client.post("/predict", content=jpeg)
    await client.post("/predict?model=other", content=jpeg)
    assert [(asked["model"], asked["top_k"]) for asked in engine.asked] == [("tiny", 5), ("other", 3)]


async def test_rollout_returns_the_contracts_json(client, engine, jpeg):
    url = "/attention/rollout?head_fusion=max&discard_ratio=0.5&overlay=heatmap&grid=true"
    body = (await client.post(url, content=jpeg)).json()
    rollout = body.pop("rollout")
    assert set(body) == {"model", "image", "labels"}
    assert base64.b64decode(rollout.pop("mask")).startswith(b"\x89PNG")
    assert base64.b64decode(rollout.pop("overlay")).startswith(b"\x89PNG")
    assert rollout == {
        "grid": [[0, 1, 2], [3, 4, 5]],
        "grid_size": [2, 3],
        "min": 0,
        "max": 5,
        "head_fusion": "max",
        "discard_ratio": 0.5,
    }
    asked = {key: engine.asked[0][key] for key in ("head_fusion", "discard_ratio", "overlay")}
    assert asked == {"head_fusion": "max", "discard_ratio": 0.5, "overlay": "heatmap"}


async def test_rollout_without_options_has_nulls(client, jpeg):
    rollout = (await client.post("/attention/rollout", content=jpeg)).json()["rollout"]
    assert rollout["overlay"] is None
    assert rollout["grid"] is None
    assert (rollout["head_fusion"], rollout["discard_ratio"]) == ("mean", 0)


async def test_blocks_returns_the_contracts_json(client, engine, jpeg):
    body = (await client.post("/attention/blocks?layout=grid&max_side=64&grids=1", content=jpeg)).json()
    blocks = body.pop("blocks")
    assert base64.b64decode(blocks.pop("canvas")).startswith(b"\x89PNG")
    assert len(blocks.pop("grids")) == 4
    assert blocks == {
        "count": 4,
        "layout": "grid",
        "columns": 4,
        "panel": {"width": 40, "height": 30},
        "scale": 1.0,
        "grid_size": [2, 3],
        "min": [0, 6, 12, 18],
        "max": [5, 11, 17, 23],
    }
    assert (engine.asked[0]["layout"], engine.asked[0]["max_side"]) == ("grid", 64)


@pytest.mark.parametrize(
    "path", ["/attention/rollout", "/attention/rollout?overlay=masked", "/attention/blocks"]
)
async def test_accept_png_returns_the_picture_with_its_labels(client, jpeg, path):
    response = await client.post(path, content=jpeg, headers={"Accept": "image/png"})
    assert response.headers["Content-Type"] == "image/png"
    assert response.headers["Vary"] == "Accept"
    assert response.content.startswith(b"\x89PNG")
    assert response.headers["X-Labels"].isprintable()
    labels = json.loads(response.headers["X-Labels"])
    assert labels[0] == {"index": 0, "label": "class 0, 🐱\x7f", "score": 1.0}
    colour = 0 if path == "/attention/rollout" else 2
    assert response.content[25] == colour  # IHDR: grey or RGB


async def test_models_lists_the_default_first(client):
    models = (await client.get("/models")).json()["models"]
    assert [(model["name"], model["default"]) for model in models] == [("tiny", True), ("other", False)]
    assert models[0] == {
        "name": "tiny",
        "family": "vit",
        "digest": "sha256:" + "0" * 64,
        "source": "nowhere",
        "licence": None,
        "input_size": [32, 48],
        "classes": 7,
        "blocks": 4,
        "heads": 2,
        "device": "cpu",
        "precision": "fp32",
        "runtime": "torch",
        "default": True,
        "explains": ["rollout", "blocks"],
    }


async def test_health_tells_liveness_from_readiness(client, engine):
    assert (await client.get("/healthz")).json() == {"status": "ok"}
    assert (await client.get("/readyz")).status_code == 200
    engine.not_ready = "draining"
    response = await client.get("/readyz")
    assert response.status_code == 503
    assert "draining" in response.json()["detail"]
    assert (await client.get("/healthz")).status_code == 200
    engine.alive = False
    assert (await client.get("/healthz")).status_code == 503


async def test_metrics_are_prometheus_text(client, engine, metrics, jpeg):
    engine.batcher.append(object())
    await client.post("/predict", content=jpeg)
    await client.get("/nowhere")
    await client.request("BREW", "/predict")
    response = await client.get("/metrics")
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    lines = response.text.splitlines()
    assert 'vit_attention_requests_total{method="POST",route="/predict",status="200"} 1.0' in lines
    assert 'vit_attention_request_seconds_count{route="/predict",status="200"} 1.0' in lines
    assert 'vit_attention_requests_total{method="GET",route="unmatched",status="404"} 1.0' in lines
    assert 'vit_attention_requests_total{method="_OTHER",route="/predict",status="405"} 1.0' in lines
    assert 'vit_attention_refusals_total{reason="not-found"} 1.0' in lines
    assert 'vit_attention_stage_seconds_count{stage="decode"} 1.0' in lines
    assert "vit_attention_queue_length 1.0" in lines


async def test_docs_and_openapi(client):
    assert "openapi.json" in (await client.get("/docs")).text
    document = (await client.get("/openapi.json")).json()
    assert set(document["paths"]) == {
        "/healthz",
        "/readyz",
        "/models",
        "/metrics",
        "/predict",
        "/attention/rollout",
        "/attention/blocks",
    }


async def test_every_reference_in_openapi_leads_somewhere(client):
    document = (await client.get("/openapi.json")).json()
    text = json.dumps(document)
    for name in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert name in document["components"]["schemas"]
    assert "HTTPValidationError" not in text


class TestKeys:
    @pytest.fixture
    def settings(self) -> Settings:
        return Settings(api_keys=["one", "twø"])

    @pytest.mark.parametrize(
        "headers",
        [{"Authorization": "Bearer one"}, {"X-API-Key": "one"}, {"authorization": "bearer one"}],
    )
    async def test_a_key_opens(self, client, headers):
        assert (await client.get("/models", headers=headers)).status_code == 200

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"Authorization": "Bearer On"},
            {"X-API-Key": ""},
            {"Authorization": "Basic one"},
            {"X-API-Key": b"\xff\xfe"},
        ],
    )
    @pytest.mark.parametrize("path", ["/models", "/metrics", "/docs", "/openapi.json"])
    async def test_no_key_keeps_it_closed(self, client, headers, path):
        response = await client.get(path, headers=headers)
        assert response.status_code == 401
        assert response.headers["WWW-Authenticate"] == "Bearer"
        assert response.json()["type"] == "urn:vit-attention:problem:unauthorized"

    async def test_images_need_a_key_too(self, client, engine, jpeg):
        assert (await client.post("/predict", content=jpeg)).status_code == 401
        assert not engine.asked

    async def test_health_is_open(self, client):
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/readyz")).status_code == 200

    def test_openapi_tells_of_keys(self, app: FastAPI):
        operation = app.openapi()["paths"]["/predict"]["post"]
        assert len(operation["security"]) == 2
        assert "401" in operation["responses"]


async def test_the_lifespan_starts_and_closes_the_engine(app, engine):
    async with app.router.lifespan_context(app):
        assert engine.life == ["started"]
    assert engine.life == ["started", "closed"]


@pytest.mark.parametrize(
    ("host", "keys", "warned"),
    [
        ("0.0.0.0", [], True),
        ("", [], True),
        ("example.org", [], True),
        ("0.0.0.0", ["key"], False),
        ("127.0.0.2", [], False),
        ("::1", [], False),
        ("localhost", [], False),
    ],
)
async def test_an_open_door_is_warned_of(engine, log_lines, host, keys, warned):
    app = create_app(Settings(host=host, api_keys=keys), engine)
    async with app.router.lifespan_context(app):
        assert [line["log_level"] for line in log_lines] == ["warning"] * warned


def test_many_apps_live_in_one_process(settings, engine):
    apps = [create_app(settings, engine) for _ in range(3)]
    assert len({id(app.state.metrics) for app in apps}) == 3


async def test_an_empty_folder_serves_no_page(client):
    response = await client.get("/nothing.js")
    assert response.status_code == 404


async def test_the_page_is_served_under_its_policy(settings, engine, tmp_path, monkeypatch):
    (tmp_path / "index.html").write_text("<title>viewer</title>")
    (tmp_path / "app.js").write_text("0")
    (tmp_path / "__init__.py").write_text("")
    monkeypatch.setattr("service.api.app.WEB", tmp_path)
    transport = httpx.ASGITransport(create_app(settings, engine))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        page = await client.get("/")
        assert "viewer" in page.text
        assert "default-src 'none'" in page.headers["Content-Security-Policy"]
        assert page.headers["X-Content-Type-Options"] == "nosniff"
        script = await client.get("/app.js")
        assert script.headers["Content-Type"].startswith("text/javascript")
        unchanged = await client.get("/app.js", headers={"If-None-Match": script.headers["ETag"]})
        assert unchanged.status_code == 304
        assert (await client.get("/__init__.py")).status_code == 404
        assert (await client.post("/nowhere")).status_code == 404
        assert (await client.get("/predict")).status_code == 405
        assert "Content-Security-Policy" not in (await client.get("/docs")).headers
