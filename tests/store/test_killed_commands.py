"""`models import` and `models pull` are killed at random moments; the store must work after each."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from service.store.registry import Registry

from .tiny import saved

KILLS = 50
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def two_models(tmp_path_factory) -> list[Path]:
    """The folders of two models of one name, larger than what comes in one piece."""
    from transformers import ViTConfig, ViTForImageClassification

    folders = []
    for number in range(2):
        torch.manual_seed(number)
        labels = {index: f"{number}/{index}" for index in range(3)}
        config = ViTConfig(
            hidden_size=96,
            num_hidden_layers=4,
            num_attention_heads=3,
            intermediate_size=384,
            image_size=28,
            patch_size=7,
            id2label=labels,
            label2id={name: index for index, name in labels.items()},
        )
        folders.append(tmp_path_factory.mktemp(f"model-{number}") / "vit-tiny")
        saved(ViTForImageClassification(config), folders[-1])
    return folders


@pytest.fixture
def hub(two_models, stand_in):
    """Both models on the stand-in, under names that end alike."""
    for owner, folder in zip(("one", "two"), two_models, strict=True):
        stand_in.hub[f"{owner}/vit-tiny"] = {path.name: path.read_bytes() for path in folder.iterdir()}
    return stand_in


def kill(root: Path, *arguments: object, **environment: str) -> None:
    (root / "temporary").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tests.store.killed_commands", str(root), str(KILLS), *map(str, arguments)],
        env=os.environ | {"TMPDIR": str(root / "temporary")} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert f"killed {KILLS} times" in done.stdout
    print(done.stdout)


def test_killed_imports(two_models, tmp_path):
    kill(tmp_path, "import", *two_models)


def test_killed_pulls(hub, tmp_path):
    kill(tmp_path, "pull", "one/vit-tiny", "two/vit-tiny", HF_ENDPOINT=hub.url)


def test_a_pull_that_was_killed_half_way_is_resumed(hub, tmp_path):
    start = "from service.cli.main import main; main()"
    command = [sys.executable, "-c", start, "models", "pull", "one/vit-tiny"]
    environment = os.environ | {"HF_ENDPOINT": hub.url, "VIT_ATTENTION_MODEL_STORE": str(tmp_path)}
    hub.cut["model.safetensors"] = [100_000, 0, 0, 0]  # and it tries again for seconds
    with subprocess.Popen(command, env=environment) as process:
        while not any(part.stat().st_size == 100_000 for part in tmp_path.rglob("model.safetensors.part")):
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    assert Registry(tmp_path).names() == []
    hub.cut.clear()
    hub.asked.clear()
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)
    assert hub.ranges("model.safetensors") == ["bytes=100000-"]
    registry = Registry(tmp_path)
    assert registry.load(registry.open("vit-tiny"))
