import dataclasses
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from service.errors import CheckpointError, StoreError
from service.store.registry import Registry, sha256

from .tiny import ARCHITECTURE, BAD_NAMES, PREPROCESS, tiny


def test_what_was_added_is_what_is_loaded(registry, checkpoint):
    added = registry.add("tiny", checkpoint, "a.npz", "mit")
    assert registry.names() == ["tiny"]
    assert registry.open("tiny") == added
    manifest, model = registry.load(added)
    assert (manifest.architecture, manifest.preprocessing) == (ARCHITECTURE, PREPROCESS)
    assert (manifest.labels, manifest.source, manifest.licence) == (checkpoint.labels, "a.npz", "mit")
    assert manifest.digest == sha256(added.weights)
    assert not model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, checkpoint.state[name])


def test_half_the_precision_is_half_the_file_and_loads_in_float32(registry, checkpoint):
    full = registry.add("full", checkpoint, "a", None)
    half = registry.add("half", checkpoint, "a", None, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in load_file(half.weights).values()} == {torch.bfloat16}
    assert half.weights.stat().st_size < 0.7 * full.weights.stat().st_size
    _, model = registry.load(half)
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, checkpoint.state[name].bfloat16().float())


def test_every_user_may_read_what_the_umask_lets_them(registry, checkpoint):
    previous = os.umask(0o022)
    try:
        stored = registry.add("tiny", checkpoint, "a", None)
    finally:
        os.umask(previous)
    assert {path.stat().st_mode & 0o777 for path in stored.folder.iterdir()} == {0o644}


def test_tensors_that_share_memory_can_be_stored(registry, checkpoint):
    fused = torch.randn(2, 24)
    checkpoint.state["blocks.0.norm1.weight"], checkpoint.state["blocks.0.norm1.bias"] = fused
    checkpoint.state["blocks.1.norm1.weight"] = fused[0]
    _, model = registry.load(registry.add("tiny", checkpoint, "a", None))
    assert torch.equal(model.state_dict()["blocks.1.norm1.weight"], fused[0])


def test_classes_without_labels_are_numbered(registry, checkpoint):
    unlabelled = dataclasses.replace(checkpoint, labels=None)
    assert registry.add("tiny", unlabelled, "a", None).manifest.labels == ["0", "1", "2", "3", "4"]


def test_a_store_that_is_not_there_is_empty(registry):
    assert registry.names() == []
    with pytest.raises(StoreError, match=r"no model tiny.*holds no model.*models pull"):
        registry.open("tiny")


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_never_lead_out_of_the_store(registry, checkpoint, name):
    for attempt in (registry.open, lambda name: registry.add(name, checkpoint, "a", None)):
        with pytest.raises(StoreError, match="is not a model name"):
            attempt(name)
    assert not registry.root.exists()


def test_a_path_is_opened_where_a_path_is_meant(registry, checkpoint, tmp_path):
    folder = registry.add("tiny", checkpoint, "a", None).folder.rename(tmp_path / "elsewhere")
    assert registry.open_path(folder).manifest.name == "tiny"


def test_an_existing_name_is_kept_unless_told(registry):
    registry.add("tiny", tiny(1), "a", None)
    with pytest.raises(StoreError, match=r"in the store already.*--force.*--name"):
        registry.add("tiny", tiny(2), "a", None)
    assert version(registry, "tiny") == 1
    registry.add("tiny", tiny(2), "a", None, replace=True)
    assert version(registry, "tiny") == 2
    assert [path.name for path in registry.root.iterdir() if path.is_dir()] == ["tiny"]


def test_files_and_links_are_never_replaced(registry, checkpoint, tmp_path):
    registry.add("tiny", checkpoint, "a", None)
    (registry.root / "README.md").touch()
    (registry.root / "link").symlink_to(tmp_path)
    for name in ("README.md", "link"):
        with pytest.raises(StoreError, match="left alone"):
            registry.add(name, checkpoint, "a", None, replace=True)
    assert tmp_path.exists()


def test_what_does_not_fit_is_not_stored(registry, checkpoint):
    del checkpoint.state["norm.bias"]
    with pytest.raises(CheckpointError, match=r"norm\.bias"):
        registry.add("tiny", checkpoint, "a", None)
    checkpoint = tiny()
    checkpoint.labels.pop()
    with pytest.raises(StoreError, match=r"tiny can't be stored: 4 labels for 5 classes"):
        registry.add("tiny", checkpoint, "a", None)
    assert registry.names() == []
    assert not list(registry.root.glob(".new-*"))


def test_broken_folders_are_told_apart(registry, checkpoint):
    for name in ("good", "cut", "bare", "renamed", "wrong"):
        registry.add(name, checkpoint, "a", None)
    root = registry.root
    (root / "cut" / "model.json").write_text('{"name": "cu')
    (root / "bare" / "model.safetensors").unlink()
    (root / "renamed").rename(root / "other")
    manifest = json.loads((root / "wrong" / "model.json").read_text()) | {"labels": []}
    (root / "wrong" / "model.json").write_text(json.dumps(manifest))
    (root / "empty").mkdir()
    (root / "lost+found").mkdir()
    (root / "model.json").mkdir()
    (root / "stray.txt").touch()
    listing = registry.manifests()
    assert [stored.manifest.name for stored in listing.models] == ["good"]
    assert listing.broken.keys() == {"cut", "bare", "other", "wrong", "empty", "lost+found", "model.json"}
    assert "0 labels for 5 classes" in listing.broken["wrong"]
    assert "'renamed'" in listing.broken["other"]
    assert "has no model.safetensors" in listing.broken["bare"]


def test_a_damaged_file_is_refused(registry, checkpoint):
    stored = registry.add("tiny", checkpoint, "a", None)
    whole = stored.weights.read_bytes()
    flipped = whole[:-1] + bytes([whole[-1] ^ 1])
    for damaged in (whole[:-1], whole[:100], b"", flipped):
        stored.weights.write_bytes(damaged)
        with pytest.raises(StoreError, match=r"tiny: model\.safetensors does not match.*again with --force"):
            registry.load(stored)


def test_an_architecture_that_the_weights_do_not_have_is_refused(registry, checkpoint):
    stored = registry.add("tiny", checkpoint, "a", None)
    text = (stored.folder / "model.json").read_text()
    (stored.folder / "model.json").write_text(text.replace('"depth": 2', '"depth": 3'))
    with pytest.raises(StoreError, match=r"tiny can't be loaded: .*--force"):
        registry.load(registry.open("tiny"))


def test_a_full_disk_leaves_nothing(registry, checkpoint, monkeypatch):
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    registry.add("tiny", tiny(1), "a", None)
    monkeypatch.setattr("service.store.registry._sync", full)
    with pytest.raises(StoreError, match=r"tiny can't be written.*No space left"):
        registry.add("tiny", tiny(2), "a", None, replace=True)
    assert version(registry, "tiny") == 1
    assert [path.name for path in registry.root.iterdir() if path.is_dir()] == ["tiny"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_store_that_is_read_only_says_so(registry, checkpoint):
    registry.root.mkdir(mode=0o555)
    with pytest.raises(StoreError, match="can't be written"):
        registry.add("tiny", checkpoint, "a", None)


def test_a_store_that_is_a_file_says_so(registry):
    registry.root.touch()
    with pytest.raises(StoreError, match="can't be read"):
        registry.names()


def test_concurrent_adds_of_one_name(registry):
    seeds = range(1, 9)
    start = threading.Barrier(len(seeds))

    def add(seed: int) -> bool:
        checkpoint = tiny(seed)
        start.wait()
        try:
            registry.add("tiny", checkpoint, "a", None)
        except StoreError:
            return False
        return True

    with ThreadPoolExecutor(len(seeds)) as pool:
        added = dict(zip(seeds, pool.map(add, seeds), strict=True))
    assert sum(added.values()) == 1
    assert added[version(registry, "tiny")]


def test_a_kill_at_any_moment_leaves_a_store_that_works(tmp_path):
    """Processes that replace a model over and over are killed: before every step once, then at random."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.store.killed_adds", str(tmp_path / "store")],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    assert "15 random" in done.stdout


def version(registry: Registry, name: str) -> int:
    """The seed of a stored model, once its labels, weights and digest agree on it."""
    manifest, model = registry.load(registry.open(name))
    seed = int(manifest.labels[0].partition("/")[0])
    assert model.state_dict()["head.bias"].tolist() == [seed] * 5
    return seed
