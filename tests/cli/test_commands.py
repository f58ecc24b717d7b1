"""The commands as a user types them, in this process and on a server."""

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import PIL.Image
import pytest
from typer.testing import CliRunner, Result

from service import __version__
from service.cli.main import app

from .conftest import ready_url, started


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(params=["here", "server"])
def where(request: pytest.FixtureRequest, tiny_store: Path) -> list[str]:
    """The flags that name the tiny model, in this process or on a server."""
    if request.param == "here":
        return ["--model-store", str(tiny_store), "--model", "tiny"]
    return ["--url", request.getfixturevalue("server"), "--model", "tiny"]


def test_version() -> None:
    assert run("--version").output == f"vit-attention {__version__}\n"


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, service.cli.main; print({'torch', 'cv2', 'fastapi', 'httpx', 'PIL'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_predict_prints_labels(where: list[str], pictures: Path) -> None:
    result = run("predict", pictures, "--top-k", 2, *where)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[::3] == [str(pictures / name) for name in ("b.png", "cats/a.jpg", "dogs/a.jpg")]
    assert all("%  tiny " in line for line in lines[1::3] + lines[2::3])


def test_predict_prints_json(where: list[str], pictures: Path) -> None:
    result = run("predict", pictures, "--json", *where)
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [Path(answer["file"]).name for answer in answers] == ["b.png", "a.jpg", "a.jpg"]
    assert answers[0]["model"]["name"] == "tiny"
    assert len(answers[0]["labels"]) == 5
    assert (answers[0]["width"], answers[0]["height"]) == (37, 29)


def test_rollout_writes_masks_and_overlays(where: list[str], pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("rollout", pictures, "-o", out, "--overlay", "heatmap", *where)
    assert result.stdout == f"3 pictures -> {out}\n"
    written = {path.relative_to(out).as_posix() for path in out.rglob("*.*")}
    assert written == {f"{it}.{kind}.png" for it in ("b", "cats/a", "dogs/a") for kind in ("mask", "overlay")}
    with PIL.Image.open(out / "b.mask.png") as mask, PIL.Image.open(out / "b.overlay.png") as overlay:
        assert (mask.mode, mask.size) == ("L", (37, 29))
        assert (overlay.mode, overlay.size) == ("RGB", (37, 29))


def test_blocks_writes_one_named_canvas(where: list[str], pictures: Path, tmp_path: Path) -> None:
    result = run("blocks", pictures / "b.png", "-o", tmp_path / "it.png", "--max-side", 11, *where)
    assert result.stdout == f"{tmp_path / 'it.png'}\n"
    with PIL.Image.open(tmp_path / "it.png") as canvas:
        assert canvas.width == 3 * 11


def test_a_bad_picture_is_told_at_the_end(where: list[str], pictures: Path) -> None:
    (pictures / "a_bad.png").write_bytes(b"no picture")
    result = run("rollout", pictures, "-o", pictures, *where)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"{pictures / 'a_bad.png'}: ")
    assert result.stdout == f"3 pictures -> {pictures}\n"


def test_existing_outputs_are_left_alone(where: list[str], pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "b.mask.png").write_bytes(b"from before")
    result = run("rollout", pictures, "-o", tmp_path, "--skip-existing", *where)
    assert result.stdout == f"2 pictures -> {tmp_path} (1 already there)\n"
    assert (tmp_path / "b.mask.png").read_bytes() == b"from before"


def test_an_option_that_no_picture_can_have_is_told_once(where: list[str], pictures: Path) -> None:
    result = run("predict", pictures, "--top-k", 6, *where)
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: top_k: tiny has 5 classes")


def test_an_unknown_model(tiny_store: Path, pictures: Path) -> None:
    result = run("predict", pictures, "--model", "none", "--model-store", tiny_store)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert "none" in result.stderr


def test_no_server(pictures: Path) -> None:
    result = run("predict", pictures, "--url", "http://127.0.0.1:9")
    assert result.exit_code == 1
    assert "Is the server running? `make serve` starts one." in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "--port", "70000"], "--port 70000: Input should be less than or equal to 65535."),
        (["serve", "--device", "tpu"], "--device tpu: Allowed: auto, cpu, cuda or cuda:N."),
        (["serve", "--log-format", "xml"], "--log-format"),
        (["predict", "nowhere.jpg"], "nowhere.jpg"),
        (["predict", __file__, "--url", "http://x", "--device", "cpu"], "--device is the server's to choose"),
    ],
)
def test_usage_errors(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_bad_environment_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIT_ATTENTION_MAX_QUEUE", "0")
    result = run("serve")
    assert result.exit_code == 2
    assert "VIT_ATTENTION_MAX_QUEUE=0: Input should be greater than or equal to 1." in result.stderr


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("serve", "--port", port)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: Port {port} on 127.0.0.1 is in use")


def test_serve_ends_on_an_unknown_model(tiny_store: Path) -> None:
    flags = ["--model", "none", "--port", "0", "--model-store", str(tiny_store)]
    with started("serve", *flags, stderr=subprocess.PIPE) as process:
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    assert b"Traceback" not in stderr
    assert stderr.splitlines()[-1].startswith(b"error: ")


def test_ctrl_c_ends_serve(tiny_store: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    flags = ["--model", "tiny", "--port", "0", "--model-store", str(tiny_store)]
    with log.open("w") as stderr, started("serve", *flags, stderr=stderr) as process:
        ready_url(process, log)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
    assert "stopped" in log.read_text()
    assert "Traceback" not in log.read_text()


def test_ctrl_c_leaves_no_partial_files(server: str, pictures: Path, tmp_path: Path) -> None:
    for index in range(400):
        (pictures / f"copy{index}.png").hardlink_to(pictures / "b.png")
    out = tmp_path / "out"
    flags = ["-o", str(out), "--url", server, "--in-flight", "3"]
    with started("rollout", str(pictures), *flags, stderr=subprocess.PIPE) as process:
        while not out.exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in stderr
    names = [path.name for path in out.rglob("*") if path.is_file()]
    assert names
    assert all(name.endswith(".mask.png") for name in names)
    for path in out.rglob("*.png"):
        PIL.Image.open(path).load()


def test_openapi() -> None:
    assert "/attention/rollout" in run("openapi").stdout
    assert "/attention/rollout" in json.loads(run("openapi", "--json").stdout)["paths"]
