"""Dockerfile and docker-compose.yml agree with the project, and with each other, on what they name."""

import json
from pathlib import Path

import pytest
import yaml

from service.settings import Settings

ROOT = Path(__file__).parent.parent
PREFIX = Settings.model_config["env_prefix"]

Instructions = dict[str, list[str]]


@pytest.fixture(scope="module")
def instructions() -> Instructions:
    """The arguments of each kind of instruction, stage by stage; those of the last stage come last."""
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    found: Instructions = {}
    for line in lines:
        if line and not line.startswith("#"):
            name, _, arguments = line.partition(" ")
            found.setdefault(name, []).append(" ".join(arguments.split()))
    return found


@pytest.fixture(scope="module")
def compose() -> dict:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def variables(instructions: Instructions) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in instructions["ENV"][-1].split())


def test_the_image_is_configured_by_settings_that_exist(instructions, monkeypatch):
    chosen = {name: value for name, value in variables(instructions).items() if name.startswith(PREFIX)}
    assert {name.removeprefix(PREFIX).lower() for name in chosen} <= set(Settings.model_fields)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.host == "0.0.0.0"
    assert [str(settings.port)] == instructions["EXPOSE"]
    assert [str(settings.model_store)] == instructions["VOLUME"]


def test_the_service_has_no_rights(instructions):
    assert instructions["USER"] == ["10001:10001"]
    assert any("--chown=10001:10001 model_store" in source for source in instructions["COPY"])


def test_the_health_check_asks_the_service(instructions):
    (check,) = instructions["HEALTHCHECK"]
    program = json.loads(check[check.index("CMD ") + 4 :])
    assert program[:2] == ["python", "-c"]
    assert "'/healthz'" in program[2]
    assert f"{PREFIX}PORT" in program[2]
    compile(program[2], "HEALTHCHECK", "exec")


def test_what_is_copied_is_there_and_not_ignored(instructions):
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    sources = {
        word
        for arguments in instructions["COPY"]
        if "--from=" not in arguments
        for word in arguments.split()[:-1]
        if not word.startswith("--")
    }
    assert {"pyproject.toml", "constraints.txt", "service", "model_store"} <= sources
    for source in sources:
        assert (ROOT / source).exists()
        assert f"!{source}" in ignored


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_compose_runs_the_image_as_it_is_meant_to_run(compose, instructions, profile):
    service = compose["services"][profile]
    assert service["profiles"] == [profile]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["ports"][0].endswith(f":{instructions['EXPOSE'][0]}")
    assert service["volumes"] == [f"models:{instructions['VOLUME'][0]}"]
    named = {name for name in service["environment"] if name.startswith(PREFIX)}
    assert {name.removeprefix(PREFIX).lower() for name in named} <= set(Settings.model_fields)


def test_compose_answers_what_was_accepted_before_it_kills(compose):
    longest = Settings.model_fields["timeout_s"].default
    for service in compose["services"].values():
        assert int(service["stop_grace_period"].removesuffix("s")) > longest


def test_build_arguments_that_compose_gives_are_declared(compose, instructions):
    declared = {argument.partition("=")[0] for argument in instructions["ARG"]}
    assert set(compose["services"]["gpu"]["build"]["args"]) <= declared
