import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from service.errors import CheckpointError
from service.weights.detect import check, importer, read_checkpoint, read_labels
from service.weights.huggingface import read_huggingface
from service.weights.jax_npz import read_jax_npz
from service.weights.timm import read_timm
from service.weights.torch_checkpoint import read_torch_checkpoint


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.npz", read_jax_npz),
        ("a.NPZ", read_jax_npz),
        ("a.safetensors", read_timm),
        ("a.bin", read_torch_checkpoint),
        ("a.pth", read_torch_checkpoint),
    ],
)
def test_a_file_is_known_by_its_suffix(name, expected, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    assert importer(tmp_path / name) is expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"architectures": ["ViTForImageClassification"]}, read_huggingface),
        ({"architecture": "vit_x"}, read_timm),
    ],
)
def test_a_folder_is_known_by_its_config(fields, expected, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(fields))
    (tmp_path / "model.safetensors").touch()
    assert importer(tmp_path) is expected


def test_nothing_that_fits(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        read_checkpoint(tmp_path / "nowhere")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(
        CheckpointError, match=r"notes\.txt has no known suffix: expected \.npz, \.safetensors"
    ):
        read_checkpoint(tmp_path / "notes.txt")
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        read_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"holds no \.safetensors file; pickles in such folders"):
        read_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"config\.json names no model"):
        read_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: Invalid JSON"):
        read_checkpoint(tmp_path)
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(CheckpointError, match=r"folder\.npz holds no config\.json"):
        read_checkpoint(tmp_path / "folder.npz")


def test_labels_given_take_the_files_place(timm, config, write_timm) -> None:
    names = [f"theirs {i}" for i in range(11)]
    folder = write_timm(timm(), config() | {"label_names": names})
    assert read_checkpoint(folder).labels == names
    ours = [f"ours {i}" for i in range(11)]
    assert read_checkpoint(folder, ours).labels == ours


@pytest.mark.parametrize("given", [True, False])
def test_labels_number_the_classes(given, timm, config, write_timm) -> None:
    folder = write_timm(timm(), config() | ({} if given else {"label_names": ["a", "b"]}))
    with pytest.raises(CheckpointError, match="has 11 classes, but there are 2 labels"):
        read_checkpoint(folder, ["a", "b"] if given else None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"input_size": [3, 22, 22]}, "22 x 22 pixels, which its patches of 5 pixels don't tile"),
        ({"input_size": [3, 3, 3]}, "3 x 3 pixels, which its patches"),
        ({"std": [1, 1, 0]}, "normalise no image"),
        ({"mean": [1, 1, float("nan")]}, "normalise no image"),
    ],
)
def test_a_preprocessing_that_cannot_feed_the_model(fields, message, timm, config, write_timm) -> None:
    stated = config()
    stated["pretrained_cfg"] |= fields
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(write_timm(timm(), stated))


def test_a_crop_larger_than_what_it_is_cut_from(timm, tmp_path: Path) -> None:
    save_file(timm(width=192), tmp_path / "x.safetensors")
    checkpoint = read_checkpoint(tmp_path / "x.safetensors")
    for resize in (15, (20, 15), -3):
        preprocess = replace(checkpoint.preprocess, resize=resize)
        with pytest.raises(CheckpointError, match="can't crop 20 x 20 from it"):
            check(replace(checkpoint, preprocess=preprocess), tmp_path)


def test_read_labels(tmp_path: Path) -> None:
    file = tmp_path / "labels.txt"
    file.write_bytes("\ufefftench, Tinca tinca\r\nMünsterländer \nボーダーコリー\n".encode())
    assert read_labels(file) == ["tench, Tinca tinca", "Münsterländer", "ボーダーコリー"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\n\nc\n", "line 2 is empty"),
        (b"", "line 1 is empty"),
        (b"\xff\xfea", "not a UTF-8 text file"),
        (None, "can't be read: No such file"),
    ],
)
def test_labels_that_cannot_be_read(content, message, tmp_path: Path) -> None:
    file = tmp_path / "labels.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_labels(file)


def test_random_tensors_never_leak_another_error(tmp_path: Path, timm, jax) -> None:
    """Any tensor of any shape in any place: a checkpoint or a CheckpointError."""
    random = np.random.default_rng(13)
    for _ in range(15):
        tensors, arrays = timm(width=192), jax()
        for target in (tensors, arrays):
            name = list(target)[random.integers(len(target))]
            shape = tuple(int(n) for n in random.integers(0, 4, random.integers(0, 5)))
            array = np.zeros(shape, np.float32)
            target[name] = array if target is arrays else torch.from_numpy(array)
        np.savez(tmp_path / "x.npz", **arrays)
        save_file(tensors, tmp_path / "x.safetensors")
        for suffix in ("npz", "safetensors"):
            with pytest.raises(CheckpointError):
                read_checkpoint(tmp_path / f"x.{suffix}")
