"""A pickle that runs code when it is loaded is offered to everything that reads weights: none loads it."""

import contextlib
import io
import json
import pickle
import re
import tarfile
import threading
import typing
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from service.cli.main import app
from service.errors import ServiceError
from service.store import pull as pulling
from service.store.registry import Registry, sha256
from service.weights import detect
from service.weights.checkpoint import Checkpoint
from tests.store.stand_in import LABELS, NPZ, StandIn, serve
from tests.store.tiny import tiny

FOREIGN = (".pt", ".ckpt", ".npy", ".pkl")  # suffixes of weights that no importer is for
CONFIGS = {
    "huggingface": {"architectures": ["ViTForImageClassification"]},
    "timm": {"architecture": "vit_tiny_patch16_224"},
}
ADVICE = re.compile(r"\b(save|use|give|choose|expected|download it again|import or pull it again)\b", re.I)


class Trap:
    """Loading it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return Path.mkdir, (self.folder,)


def torch_saved(what: object, *, zipped: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(what, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def tar(trap: Trap) -> bytes:
    """torch.save of 2016: a tar of pickles."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            member = tarfile.TarInfo(name)
            member.size = len(data := pickle.dumps(trap, protocol=2))
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def numpy_saved(save: Callable[..., None], trap: Trap) -> bytes:
    file = io.BytesIO()
    save(file, np.array([trap, 1], object))
    return file.getvalue()


DISGUISES: dict[str, Callable[[Trap], bytes]] = {
    "torch zip": torch_saved,
    "torch zip, in a state": lambda trap: torch_saved({"head.bias": torch.ones(3), "x": trap}),
    "torch before 1.6": lambda trap: torch_saved(trap, zipped=False),
    "torch tar": tar,
    "npz of objects": lambda trap: numpy_saved(np.savez, trap),
    "npy of objects": lambda trap: numpy_saved(np.save, trap),
    "pickle": lambda trap: pickle.dumps(trap, protocol=2),
    "newest pickle": pickle.dumps,
}
every_disguise = pytest.mark.parametrize("disguise", DISGUISES)


@pytest.fixture
def trap(tmp_path):
    """Never sprung."""
    trap = Trap(tmp_path / "sprung")
    yield trap
    assert not trap.folder.exists()


@pytest.fixture
def store(tmp_path, monkeypatch) -> Registry:
    monkeypatch.setenv("VIT_ATTENTION_MODEL_STORE", str(tmp_path / "store"))
    return Registry(tmp_path / "store")


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(pulling, "get_token", lambda: None)
    stand_in = StandIn()
    with serve(stand_in) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield stand_in
        server.shutdown()
        thread.join()


def assert_refused(ask: Callable[[], object]) -> None:
    with pytest.raises(ServiceError) as refusal:
        ask()
    assert ADVICE.search(refusal.value.detail), refusal.value.detail


def assert_command_refused(*arguments: object) -> None:
    result = CliRunner().invoke(app, ["models", *map(str, arguments)])
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("error: ")
    assert ADVICE.search(result.stderr), result.stderr


def folder_with(folder: Path, config: str, **files: bytes) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIGS[config]))
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


@every_disguise
def test_whoever_loads_it_is_caught(disguise, tmp_path) -> None:
    trap, file = Trap(tmp_path / "sprung"), tmp_path / "x"
    file.write_bytes(DISGUISES[disguise](trap))
    for load in (
        lambda: torch.load(file, weights_only=False),
        lambda: np.load(io.BytesIO(file.read_bytes()), allow_pickle=True)["arr_0"],
        lambda: pickle.loads(file.read_bytes()),
    ):
        with contextlib.suppress(Exception):
            load()
    assert trap.folder.exists()


@every_disguise
@pytest.mark.parametrize("suffix", [*detect.BY_SUFFIX, *FOREIGN])
def test_a_file_is_refused(suffix, disguise, trap, store, tmp_path) -> None:
    file = tmp_path / f"x{suffix}"
    file.write_bytes(DISGUISES[disguise](trap))
    assert_refused(lambda: detect.read_checkpoint(file))
    assert_command_refused("import", file)
    assert store.names() == []


@every_disguise
@pytest.mark.parametrize("config", CONFIGS)
def test_a_folder_is_refused(config, disguise, trap, store, tmp_path) -> None:
    data = DISGUISES[disguise](trap)
    for number, files in enumerate(
        (
            {"pytorch_model.bin": data},
            {"model.safetensors": data},
            {"model.safetensors": data, "config.json": data},
        )
    ):
        folder = folder_with(tmp_path / f"folder-{number}", config, **files)
        assert_refused(lambda folder=folder: detect.read_checkpoint(folder))
        assert_command_refused("import", folder)
    assert store.names() == []


@every_disguise
def test_a_shard_is_refused(disguise, trap, tmp_path) -> None:
    data = DISGUISES[disguise](trap)
    index = json.dumps({"weight_map": {"head.bias": "pytorch_model.bin"}}).encode()
    files = {"model.safetensors.index.json": index, "pytorch_model.bin": data, "x.safetensors": data}
    folder = folder_with(tmp_path / "folder", "huggingface", **files)
    assert_refused(lambda: detect.read_checkpoint(folder))


@every_disguise
def test_a_pull_is_refused(disguise, trap, store, hub) -> None:
    data, config = DISGUISES[disguise](trap), json.dumps(CONFIGS["huggingface"]).encode()
    hub.hub["a/pickled"] = {"config.json": config, "pytorch_model.bin": data}
    hub.hub["a/renamed"] = {"config.json": config, "model.safetensors": data}
    hub.bucket = {NPZ: data, LABELS: b"cat\ndog\n"}
    for name in ("a/pickled", "a/renamed", "ViT-B_16-224"):
        assert_refused(lambda name=name: pulling.pull(name, store, hub_url=hub.url, bucket_url=hub.url))
    assert_command_refused("pull", "ViT-B_16-224", "--bucket-url", hub.url)
    assert store.names() == []
    assert hub.ranges("model.safetensors") == [None]
    assert hub.ranges(".npz") == [None]  # the second pull goes on with what the first one fetched
    assert not any(path.endswith("pytorch_model.bin") for _, path, _ in hub.asked)


@every_disguise
@pytest.mark.parametrize("digest", ["its own", "another"])
def test_a_stored_model_is_refused(digest, disguise, trap, store) -> None:
    stored = store.add("tiny", tiny(), "a", None)
    stored.weights.write_bytes(DISGUISES[disguise](trap))
    if digest == "its own":
        text = (stored.folder / "model.json").read_text()
        changed = text.replace(stored.manifest.digest, sha256(stored.weights))
        (stored.folder / "model.json").write_text(changed)
    assert_refused(lambda: store.load(store.open("tiny")))


def test_a_pickle_beside_the_weights_is_left_alone(trap, timm, write_timm) -> None:
    folder = write_timm(timm())
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(trap))
    assert torch.equal(detect.read_checkpoint(folder).state["norm.bias"], timm()["norm.bias"])


def test_every_importer_was_offered_one(tmp_path) -> None:
    """An importer that the tests above don't reach has to be added to them."""
    readers = {name: each for name, each in vars(detect).items() if name.startswith("read_")}
    known = {each for each in readers.values() if typing.get_type_hints(each)["return"] is Checkpoint}
    known.remove(detect.read_checkpoint)
    folders = [folder_with(tmp_path / config, config, **{"x.safetensors": b""}) for config in CONFIGS]
    assert known == {*detect.BY_SUFFIX.values(), *map(detect.folder_importer, folders)}
