"""Settings of serving others: `serve` says at once what is wrong with them; other commands ignore them."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli.main import app

from .conftest import started


def test_a_missing_file_of_keys_ends_serve(tiny_store: Path, tmp_path: Path) -> None:
    missing = tmp_path / "keys"
    flags = [
        "--model",
        "tiny",
        "--port",
        "0",
        "--model-store",
        str(tiny_store),
        "--api-keys-file",
        str(missing),
    ]
    with started("serve", *flags, stderr=subprocess.PIPE) as process:
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    assert b"Traceback" not in stderr
    assert stderr.splitlines()[-1].startswith(
        f"error: The file of API keys '{missing}' can't be read".encode()
    )


def test_a_wrong_origin_ends_serve_with_what_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIT_ATTENTION_CORS_ORIGINS", "https://a.example/,https://b.example")
    result = CliRunner().invoke(app, ["serve"])
    assert result.exit_code == 2
    told = " ".join(result.output.replace("│", " ").split())
    assert "VIT_ATTENTION_CORS_ORIGINS=https://a.example/: Allowed:" in told


def test_a_missing_key_in_the_list_tells_none_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIT_ATTENTION_API_KEYS", "my-key,,my-other-key")
    result = CliRunner().invoke(app, ["serve"])
    assert result.exit_code == 2
    assert "VIT_ATTENTION_API_KEYS" in result.output
    assert "my-" not in result.output


def test_local_commands_ask_for_no_key_and_send_no_traces(
    tiny_store: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIT_ATTENTION_API_KEYS_FILE", str(tmp_path / "missing"))
    monkeypatch.setenv("VIT_ATTENTION_TRACES", "true")
    monkeypatch.setitem(sys.modules, "service.api.traces", None)  # who imports it fails
    flags = ["--model-store", str(tiny_store), "--model", "tiny"]
    result = CliRunner().invoke(app, ["predict", str(pictures / "b.png"), *flags])
    assert result.exit_code == 0, result.output


def test_help_names_the_file_of_keys() -> None:
    text = " ".join(CliRunner().invoke(app, ["serve", "--help"]).output.split())
    assert "--api-keys-file FILE" in text
    assert "[VIT_ATTENTION_API_KEYS_FILE; default: none]" in text
