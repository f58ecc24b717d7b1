import io
import json
import logging
import re

import pytest
import structlog

from service import logs
from service.settings import Settings


@pytest.fixture(autouse=True)
def restored(log_lines):
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


NASTY = 'x\n{"event": "forged"}\r\x1b[2J\u2028\x00'


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_no_value_forges_a_line(log_format):
    stream = io.StringIO()
    logs.configure(log_format, "info", stream)
    structlog.get_logger("a").info("request", path=NASTY)
    logging.getLogger("uvicorn.error").warning("saw %s", NASTY)
    text = stream.getvalue()
    assert len(text.splitlines()) == 2
    assert "\x1b" not in text
    assert "\x00" not in text


def test_json_lines_hold_their_fields():
    stream = io.StringIO()
    logs.configure("json", "info", stream)
    structlog.get_logger("service.access").info("request", path=NASTY, status=200)
    line = json.loads(stream.getvalue())
    assert (line["event"], line["logger"], line["level"]) == ("request", "service.access", "info")
    assert (line["path"], line["status"]) == (NASTY, 200)


def logged_traceback(log_format: str) -> str:
    stream = io.StringIO()
    logs.configure(log_format, "info", stream)
    try:
        raise ValueError(NASTY)
    except ValueError:
        structlog.get_logger().exception("failed")
    return stream.getvalue()


def test_a_traceback_is_one_json_line():
    assert "Traceback" in json.loads(logged_traceback("json"))["exception"]


def test_a_traceback_on_the_console_drives_no_terminal():
    text = logged_traceback("console")
    assert "Traceback" in text
    assert "\x1b" not in text


def test_levels():
    stream = io.StringIO()
    logs.configure("json", "warning", stream)
    structlog.get_logger().info("quiet")
    assert not stream.getvalue()


class TestOfRequests:
    """What a whole request leaves in the log."""

    @pytest.fixture
    def settings(self) -> Settings:
        return Settings(api_keys=["my-key"], max_body_bytes=200_000, timeout_s=5)

    @pytest.fixture
    def stream(self, log_format) -> io.StringIO:
        stream = io.StringIO()
        logs.configure(log_format, "debug", stream)
        logging.getLogger("asyncio").setLevel(logging.WARNING)
        return stream

    @pytest.fixture
    def headers(self) -> dict[str, str]:
        return {"X-API-Key": "my-key", "X-Request-ID": "me"}

    @pytest.mark.parametrize("log_format", ["json"])
    async def test_json_has_the_id_the_model_the_sizes_and_the_stages(self, client, headers, jpeg, stream):
        await client.post("/attention/rollout", content=jpeg, headers=headers)
        line = json.loads(stream.getvalue())
        stages, took = line.pop("stages_ms"), line.pop("ms")
        assert list(stages) == ["decode", "model", "render"]
        assert took >= stages["render"] >= 0
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", line.pop("timestamp"))
        assert line == {
            "event": "request",
            "level": "info",
            "logger": "service.access",
            "method": "POST",
            "route": "/attention/rollout",
            "path": "/attention/rollout",
            "status": 200,
            "request_id": "me",
            "model": "tiny",
            "image_bytes": len(jpeg),
            "width": 40,
            "height": 30,
        }

    @pytest.mark.parametrize("log_format", ["console"])
    async def test_the_console_has_them_too(self, client, headers, jpeg, stream):
        await client.post("/predict", content=jpeg, headers=headers)
        (line,) = stream.getvalue().splitlines()
        told = {"request_id=me", "model=tiny", f"image_bytes={len(jpeg)}", "width=40", "height=30"}
        assert told <= set(line.split())
        assert "stages_ms={'decode': 2.0, 'model': 10.0}" in line

    @pytest.mark.parametrize("log_format", ["json", "console"])
    async def test_no_key_no_query_no_name_and_no_image_is_logged(
        self, client, engine, headers, jpeg, stream
    ):
        files = {"image": ("my-name.jpg", jpeg)}
        await client.post("/predict?model=other", files=files, headers=headers)
        await client.post("/predict?api_key=my-key&my-query=1", files=files, headers=headers)
        await client.post("/predict", files={"my-field": ("my-name.jpg", jpeg)}, headers=headers)
        await client.post("/predict", content=b"my-image", headers={"Authorization": "Bearer my-wrong"})
        engine.raises = RuntimeError("the model")
        await client.post("/predict?model=other", files=files, headers={**headers, "Cookie": "my-cookie"})
        text = stream.getvalue()
        assert text.count("stages_ms") == 5
        assert "Traceback" in text
        assert "my-" not in text

    @pytest.mark.parametrize("log_format", ["json", "console"])
    async def test_no_request_forges_a_line(self, client, headers, jpeg, stream):
        forged = 'x\r\n2026-01-01T00:00:00Z [info] request path=/admin status=200\x1b[2J\u2028"'
        await client.get("/" + "".join(f"%{byte:02x}" for byte in forged.encode()), headers=headers)
        await client.get("/models", headers={**headers, "X-Request-ID": forged.encode()})
        await client.get("/models", headers={**headers, "User-Agent": forged.encode(), "Host": "a\x1b[2Jb"})
        await client.request('GE\x1b[2JT" status=200', "/models", headers=headers)
        name = forged.replace("\r\n", " ").replace('"', "")
        body = f'--x\r\nContent-Disposition: form-data; name="{name}"; filename="{name}"\r\n\r\n'.encode()
        form = {**headers, "Content-Type": "multipart/form-data; boundary=x"}
        await client.post("/predict", content=body + jpeg + b"\r\n--x--\r\n", headers=form)
        text = stream.getvalue()
        assert len(text.splitlines()) == 5
        assert text.isascii()
        assert text.replace("\n", "").isprintable()
        for line in text.splitlines():
            assert line.startswith(("{", "20"))
            assert " path=/admin" not in re.sub(r"'.*?'|\".*?\"", "", line)
