"""The command line's models: list, import, and a pull in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file
from typer.testing import CliRunner

from service.cli.models import models_app
from service.errors import ServiceError
from service.store.registry import Registry

from .stand_in import SHA
from .tiny import tiny


@pytest.fixture
def store(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("VIT_ATTENTION_MODEL_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


def models(*arguments: object) -> str:
    result = CliRunner().invoke(models_app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_an_empty_store_says_what_to_do(store):
    assert "No models in" in (said := models("list"))
    assert "models pull NAME" in said


def test_the_list_shows_models_and_names_the_broken(store):
    registry = Registry(store)
    registry.add("shapes-tiny", tiny(), "datasets/shapes.py", "apache-2.0")
    registry.add("other", tiny(), "a.npz", None)
    (store / "half").mkdir()
    head, other, bundled, broken = models("list").splitlines()
    assert head.split() == ["name", "family", "classes", "input", "size", "digest", "source", "licence"]
    assert other.split()[:6] == ["other", "vit", "5", "21", "x", "35"]
    assert other.endswith("a.npz               not stated")
    assert bundled.startswith("shapes-tiny (bundled)  vit")
    assert broken == "broken: half: half has no model.json. Import or pull it again with --force."


def test_import_says_what_it_was_and_what_is_next(store, test_data):
    folder = test_data / "vit-tiny"
    labels = folder / "ilsvrc2012_wordnet_lemmas.txt"
    said = models(
        "import", folder / "vit_tiny_patch16_224.safetensors", "--labels", labels, "--name", "vit-tiny"
    )
    manifest = Registry(store).open("vit-tiny").manifest
    assert said.startswith("vit-tiny: ViT-Ti/16 at 224 x 224, 1000 classes")
    assert manifest.digest in said
    assert said.endswith("vit-attention serve --model vit-tiny\n")
    assert manifest.source == "vit_tiny_patch16_224.safetensors"
    assert manifest.labels == labels.read_text().splitlines()

    said = models("import", folder / "ViT-Ti_16-224.npz")
    assert "--labels FILE" in said
    assert Registry(store).open("ViT-Ti_16-224").manifest.digest == manifest.digest
    with pytest.raises(ServiceError, match="in the store already"):
        models("import", folder / "ViT-Ti_16-224.npz")


def test_import_of_something_else_is_refused(store, tmp_path):
    save_file({"a": tiny().state["norm.bias"]}, tmp_path / "other.safetensors")
    with pytest.raises(ServiceError, match="other"):
        models("import", tmp_path / "other.safetensors")
    assert "No models" in models("list")


def test_pull_from_the_hub_that_hf_endpoint_names(store, stand_in):
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from service.cli.models import models_app; models_app()",
            "pull",
            "google/vit-tiny",
        ],
        env=os.environ | {"HF_ENDPOINT": stand_in.url},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "vit-tiny: ViT/7 (width 24, 2 blocks, 3 heads) at 28 x 28, 3 classes" in done.stdout
    assert f"google/vit-tiny@{SHA}" in done.stdout
    assert done.stderr == ""  # no bar where nobody watches
