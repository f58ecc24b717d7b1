import os
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from service.errors import CheckpointError
from service.weights.jax_npz import read_jax_npz
from service.weights.torch_checkpoint import read_torch_checkpoint

EMBEDDINGS = "transformer.embeddings."


def ported(arrays, width=192):
    """What jeonsworld's VisionTransformer.load_from makes of the official arrays (models/modeling.py)."""
    a = {name: torch.from_numpy(array) for name, array in arrays.items()}
    state = {
        EMBEDDINGS + "position_embeddings": a["Transformer/posembed_input/pos_embedding"],
        EMBEDDINGS + "cls_token": a["cls"],
        EMBEDDINGS + "patch_embeddings.weight": a["embedding/kernel"].permute(3, 2, 0, 1),
        EMBEDDINGS + "patch_embeddings.bias": a["embedding/bias"],
        "transformer.encoder.encoder_norm.weight": a["Transformer/encoder_norm/scale"],
        "transformer.encoder.encoder_norm.bias": a["Transformer/encoder_norm/bias"],
        "head.weight": a["head/kernel"].t(),
        "head.bias": a["head/bias"],
    }
    for i in range(2):
        root, layer = f"Transformer/encoderblock_{i}/", f"transformer.encoder.layer.{i}."
        for name in ("query", "key", "value", "out"):
            unit = f"{root}MultiHeadDotProductAttention_1/{name}"
            state[f"{layer}attn.{name}.weight"] = a[unit + "/kernel"].reshape(width, width).t()
            state[f"{layer}attn.{name}.bias"] = a[unit + "/bias"].reshape(-1)
        for name, unit in {"attention_norm": "LayerNorm_0", "ffn_norm": "LayerNorm_2"}.items():
            state[f"{layer}{name}.weight"] = a[f"{root}{unit}/scale"]
            state[f"{layer}{name}.bias"] = a[f"{root}{unit}/bias"]
        for name, unit in {"fc1": "Dense_0", "fc2": "Dense_1"}.items():
            state[f"{layer}ffn.{name}.weight"] = a[f"{root}MlpBlock_3/{unit}/kernel"].t()
            state[f"{layer}ffn.{name}.bias"] = a[f"{root}MlpBlock_3/{unit}/bias"]
    return OrderedDict(state)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before PyTorch 1.6"])
def test_the_port_is_the_model_that_it_was_made_from(zipped, jax, write_npz, tmp_path: Path) -> None:
    arrays = jax(channels=64)
    torch.save(ported(arrays), tmp_path / "x.bin", _use_new_zipfile_serialization=zipped)
    official, port = read_jax_npz(write_npz(arrays)), read_torch_checkpoint(tmp_path / "x.bin")
    assert port.architecture == official.architecture
    assert port.preprocess == official.preprocess
    assert port.state.keys() == official.state.keys()
    for name, tensor in official.state.items():
        assert torch.equal(port.state[name], tensor), name


class Payload:
    """What an attacker pickles: loading it would make a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("how", ["zip", "before PyTorch 1.6", "bare pickle", "inside the state"])
def test_a_malicious_pickle_is_refused_unexecuted(how, tmp_path: Path) -> None:
    target, file = tmp_path / "owned", tmp_path / "x.bin"
    if how == "bare pickle":
        file.write_bytes(pickle.dumps(Payload(target), protocol=2))
    else:
        payload = (
            {"head.bias": torch.ones(3), "x": Payload(target)}
            if how == "inside the state"
            else Payload(target)
        )
        torch.save(payload, file, _use_new_zipfile_serialization=how != "before PyTorch 1.6")
    with pytest.raises(CheckpointError, match=r"x\.bin is refused: its pickle .* could run code"):
        read_torch_checkpoint(file)
    assert not target.exists()


@pytest.mark.parametrize(
    "saved", [[1, 2], {"state_dict": {"head.bias": torch.ones(3)}}, torch.ones(3), {1: torch.ones(1)}]
)
def test_only_a_state_dict(saved, tmp_path: Path) -> None:
    torch.save(saved, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"x\.pth is no state_dict"):
        read_torch_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize("keep", [0, 10, 1000, 0.9])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_file(keep, zipped, jax, tmp_path: Path) -> None:
    file = tmp_path / "x.bin"
    torch.save(ported(jax(channels=64)), file, _use_new_zipfile_serialization=zipped)
    whole = file.read_bytes()
    file.write_bytes(whole[: keep if isinstance(keep, int) else int(len(whole) * keep)])
    with pytest.raises(CheckpointError, match=r"x\.bin is (truncated|refused)"):
        read_torch_checkpoint(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("head.bias"), "missing: head.bias"),
        (lambda s: s.update({"head2.bias": torch.ones(1)}), "left over: head2.bias"),
        (
            lambda s: s.update({"head.weight": torch.ones(11, 3)}),
            r"head.weight \(expected \(11, 192\), found \(11, 3\)",
        ),
        (
            lambda s: s.update({EMBEDDINGS + "cls_token": torch.ones(1, 1, 33)}),
            "how many heads a ViT of width 33 has",
        ),
        (lambda s: s.update({EMBEDDINGS + "hybrid_model.x": torch.ones(1)}), "a hybrid with a ResNet root"),
        (lambda s: s.update({"blocks.0.norm1.bias": torch.ones(1)}), "these are timm's names"),
    ],
)
def test_what_does_not_fit_is_named(change, message, jax, tmp_path: Path) -> None:
    state = ported(jax(channels=64))
    change(state)
    torch.save(state, tmp_path / "x.bin")
    with pytest.raises(CheckpointError, match=message):
        read_torch_checkpoint(tmp_path / "x.bin")
