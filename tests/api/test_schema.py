"""The service keeps what /openapi.json promises: schemathesis sends what it allows, and what it does not."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from service.api.app import create_app
from service.cli.server import uvicorn_config
from service.engine.engine import Engine
from service.settings import DEFAULT_MODEL, Settings

HERE = Path(__file__).parent
MODEL_STORE = HERE.parent.parent / "model_store"
KEY = "the-key"


@pytest.mark.parametrize(
    ("keys", "headers"),
    [([], []), ([KEY], [f"Authorization: Bearer {KEY}", f"X-API-Key: {KEY}", "Accept: image/png"])],
    ids=["open, JSON", "with a key, pictures"],
)
def test_the_service_keeps_what_its_schema_promises(tmp_path, keys, headers):
    with serving(keys) as address:
        given = [word for header in headers for word in ("--header", header)]
        run = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(HERE / "schemathesis.toml")),
                *("run", f"{address}/openapi.json", "--checks", "all", "--no-color", *given),
            ],
            cwd=tmp_path,
            env={**os.environ, "SCHEMATHESIS_HOOKS": str(HERE / "schema_hooks.py")},
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("path", ["/predict", "/attention/rollout", "/attention/blocks"])
async def test_the_schema_names_the_models_that_can_answer(client, engine, monkeypatch, path):
    able = {"tiny": ["rollout"], "other": ["rollout", "blocks"]}
    monkeypatch.setattr(engine, "explains", lambda model: able[model.manifest.name])
    schemas = await parameter_schemas(client, path)
    assert schemas["model"]["enum"] == (["other"] if path == "/attention/blocks" else ["tiny", "other"])
    assert schemas["top_k"]["maximum"] == (3 if path == "/attention/blocks" else 7)
    assert schemas["top_k"]["default"] == (3 if path == "/attention/blocks" else 5)


async def test_while_models_load_the_schema_names_none(client, engine):
    await parameter_schemas(client, "/predict")
    engine.models.clear()
    schemas = await parameter_schemas(client, "/predict")
    assert "enum" not in schemas["model"]
    assert "maximum" not in schemas["top_k"]


async def parameter_schemas(client: httpx.AsyncClient, path: str) -> dict[str, Any]:
    document = (await client.get("/openapi.json")).json()
    return {entry["name"]: entry["schema"] for entry in document["paths"][path]["post"]["parameters"]}


@contextmanager
def serving(keys: list[str]) -> Iterator[str]:
    """The address of an app with the bundled model behind the service's own server, once it is ready."""
    settings = Settings(
        model_store=MODEL_STORE, model=[DEFAULT_MODEL], device="cpu", timeout_s=60, api_keys=keys
    )
    app = create_app(settings)
    server = uvicorn.Server(uvicorn_config(app, settings))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            wait_ready(app.state.engine)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def wait_ready(engine: Engine) -> None:
    deadline = time.monotonic() + 120
    while engine.not_ready is not None:
        assert time.monotonic() < deadline, engine.not_ready
        time.sleep(0.02)
