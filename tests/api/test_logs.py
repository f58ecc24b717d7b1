import io
import json
import logging

import pytest
import structlog

from service import logs


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
