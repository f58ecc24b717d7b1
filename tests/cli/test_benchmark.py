from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner, Result

from service.cli.benchmark import Load, Route
from service.cli.main import app


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["benchmark", *(str(argument) for argument in arguments)])


def rows(output: str) -> list[list[str]]:
    """The cells of the tables' lines, without the heads."""
    lines = [line for line in output.splitlines() if line.startswith("|") and "---" not in line]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [line for line in cells if line[0] not in ("route", "load")]


def test_a_server_is_measured(server: str) -> None:
    result = run("--url", server, "--seconds", 0.1, "--in-flight", 1, "--in-flight", 3)
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"{server}: tiny (cpu, ")
    measured = rows(result.output)
    closed, curve = measured[:6], measured[6:]
    paths = ["/predict", "/attention/rollout", "/attention/blocks"]
    assert [line[:2] for line in closed] == [[path, count] for path in paths for count in ("1", "3")]
    assert all(float(line[2]) > 0 and line[-1] == "0" for line in closed)
    assert [line[0] for line in curve] == ["20%", "40%", "60%", "80%", "100%", "120%", "150%"]
    assert "The knee" in result.output


def test_what_is_asked_can_be_chosen(server: str, pictures: Path) -> None:
    flags = ["--url", server, "--seconds", 0.1, "--in-flight", 2, "--no-curve"]
    result = run(*flags, "--route", "predict", "--images", pictures, "--model", "crop")
    assert result.output.startswith(f"{server}: crop (cpu, ")
    assert [line[0] for line in rows(result.output)] == ["/predict"]


def test_a_model_that_is_not_there(server: str) -> None:
    result = run("--url", server, "--model", "nobody")
    assert result.exit_code == 1
    assert f"{server} serves no model 'nobody'; it has tiny, crop." in result.output


def test_a_server_that_is_not_there() -> None:
    result = run("--url", "http://127.0.0.1:9")
    assert result.exit_code == 1
    assert "Can't connect" in result.output


@pytest.mark.parametrize("route", list(Route))
def test_requests_carry_the_key_the_model_and_each_image_in_turn(route: Route) -> None:
    load = Load("http://test", "key", "my-vit", [b"one", b"two"], 1.0)
    questions = load.questions(route)
    first, second, third = (next(questions) for _ in range(3))
    assert [first.body, second.body, third.body] == [b"one", b"two", b"one"]
    assert httpx.URL(first.url) == httpx.URL(f"http://test{route.path}?model=my-vit")
    assert first.headers["X-API-Key"] == "key"
