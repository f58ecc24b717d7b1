import math
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from service.errors import CheckpointError
from service.types import Preprocess
from service.weights.jax_npz import read_jax_npz

LINEN = {
    "MultiHeadDotProductAttention_1": "MultiHeadDotProductAttention_0",
    "LayerNorm_2": "LayerNorm_1",
    "MlpBlock_3": "MlpBlock_0",
}
POSITIONS = "Transformer/posembed_input/pos_embedding"


def linen(arrays):
    """vit_jax/models_vit.py's names."""
    renamed = {}
    for name, array in arrays.items():
        for classic, new in LINEN.items():
            name = name.replace(classic, new)
        renamed[name] = array
    return renamed


def big_vision(arrays):
    """big_vision's names: positions at the top, the CLS token's own already added to it."""
    renamed = linen(arrays)
    positions = renamed.pop(POSITIONS)
    return renamed | {"pos_embedding": positions[:, 1:], "cls": renamed["cls"] + positions[:, :1]}


def stacked(arrays):
    """big_vision's scan=True."""
    single = {name: array for name, array in arrays.items() if "encoderblock_" not in name}
    leaves = {name.split("/", 2)[2] for name in arrays if "encoderblock_" in name}
    blocks = {
        f"Transformer/encoderblock/{leaf}": np.stack(
            [arrays[f"Transformer/encoderblock_{i}/{leaf}"] for i in range(2)]
        )
        for leaf in leaves
    }
    return single | blocks


def below(root, arrays):
    return {root + name: array for name, array in arrays.items()}


def layer_norm(x, arrays, name):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-6) * arrays[name + "/scale"] + arrays[name + "/bias"]


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def forward(arrays, image):
    """The definition in NumPy, float64, on one image (height, width, 3): logits and attention."""
    a = {name: array.astype(np.float64) for name, array in arrays.items()}
    patch = a["embedding/kernel"].shape[0]
    rows, columns = image.shape[0] // patch, image.shape[1] // patch
    patches = image.reshape(rows, patch, columns, patch, 3).transpose(0, 2, 1, 3, 4)
    x = np.einsum("rcijk,ijkd->rcd", patches, a["embedding/kernel"]) + a["embedding/bias"]
    x = np.concatenate([a["cls"][0], x.reshape(rows * columns, -1)]) + a[POSITIONS][0]
    attention = []
    for i in range(2):
        block = f"Transformer/encoderblock_{i}/"
        mha = block + "MultiHeadDotProductAttention_1/"
        y = layer_norm(x, a, block + "LayerNorm_0")
        q, k, v = (
            np.einsum("nd,dhc->hnc", y, a[f"{mha}{name}/kernel"]) + a[f"{mha}{name}/bias"][:, None]
            for name in ("query", "key", "value")
        )
        scores = np.exp(np.einsum("hnc,hmc->hnm", q, k) / math.sqrt(q.shape[-1]))
        weights = scores / scores.sum(-1, keepdims=True)
        attention.append(weights)
        heads = np.einsum("hnm,hmc->hnc", weights, v)
        x = x + np.einsum("hnc,hcd->nd", heads, a[mha + "out/kernel"]) + a[mha + "out/bias"]
        y = layer_norm(x, a, block + "LayerNorm_2")
        y = gelu(y @ a[block + "MlpBlock_3/Dense_0/kernel"] + a[block + "MlpBlock_3/Dense_0/bias"])
        x = x + y @ a[block + "MlpBlock_3/Dense_1/kernel"] + a[block + "MlpBlock_3/Dense_1/bias"]
    x = layer_norm(x, a, "Transformer/encoder_norm")
    return x[0] @ a["head/kernel"] + a["head/bias"], np.stack(attention)


def test_classic_names_compute_the_definition(jax, write_npz, run) -> None:
    arrays = jax()
    checkpoint = read_jax_npz(write_npz(arrays))
    image = np.random.default_rng(3).normal(size=(20, 20, 3))
    trace = run(checkpoint, torch.from_numpy(image).float().permute(2, 0, 1)[None])
    logits, attention = forward(arrays, image)
    np.testing.assert_allclose(trace.logits[0].numpy(), logits, atol=1e-5)
    np.testing.assert_allclose(trace.attention[0].numpy(), attention, atol=1e-6)


def test_shapes_tell_the_architecture(jax, write_npz) -> None:
    checkpoint = read_jax_npz(write_npz(jax()))
    arch = checkpoint.architecture
    assert (arch.trained_size, arch.patch, arch.width, arch.depth) == ((20, 20), 5, 21, 2)
    assert (arch.heads, arch.mlp_width, arch.classes, arch.prefix_tokens) == (3, 29, 11, 1)
    assert (arch.norm_eps, arch.position_interpolation) == (1e-6, "bicubic_antialias")
    half = (0.5, 0.5, 0.5)
    assert checkpoint.preprocess == Preprocess((20, 20), (20, 20), "bilinear", half, half)
    assert checkpoint.labels is None


@pytest.mark.parametrize(
    "rename",
    [
        linen,
        big_vision,
        lambda arrays: below("params/", big_vision(arrays)),
        lambda arrays: below("opt/target/", big_vision(arrays)),
        lambda arrays: below("params/", stacked(big_vision(arrays))),
        lambda arrays: linen({name.replace("posembed_input/", ""): a for name, a in arrays.items()}),
    ],
    ids=["vit_jax", "big_vision", "params", "opt/target", "scan", "positions in the encoder"],
)
def test_every_naming_is_the_same_model(rename, jax, write_npz) -> None:
    classic = read_jax_npz(write_npz(jax()))
    other = read_jax_npz(write_npz(rename(jax())))
    assert other.architecture == classic.architecture
    assert other.state.keys() == classic.state.keys()
    for name, tensor in classic.state.items():
        assert torch.equal(other.state[name], tensor), name


def test_an_optimisers_state_is_ignored_by_name(jax, write_npz, caplog) -> None:
    state = below("params/", big_vision(jax())) | {"opt/0/count": np.array(3), "chrono/steps": np.array(5)}
    with caplog.at_level("INFO"):
        read_jax_npz(write_npz(state))
    assert "chrono/steps, opt/0/count" in caplog.text
    with pytest.raises(CheckpointError, match="left over: ema/cls"):
        read_jax_npz(write_npz(state | {"ema/cls": np.zeros(3)}))


def test_bfloat16_is_recognised(jax, write_npz) -> None:
    arrays = jax()
    bits = torch.from_numpy(arrays["head/kernel"]).bfloat16()
    arrays["head/kernel"] = bits.view(torch.int16).numpy().view("V2")
    checkpoint = read_jax_npz(write_npz(arrays))
    assert torch.equal(checkpoint.state["head.weight"], bits.float().T)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("head/bias"), "missing: head/bias"),
        (lambda a: a.update({"temperature": np.ones(1)}), "left over: temperature"),
        (lambda a: a.pop("cls"), "holds no cls: it averages its tokens"),
        (
            lambda a: a.update({"pre_logits/kernel": np.ones((21, 21))}),
            "a representation layer before the head",
        ),
        (lambda a: a.update({"MAPHead_0/probe": np.ones((1, 1, 21))}), "it pools by attention"),
        (
            lambda a: a.update({POSITIONS: np.ones((1, 19, 21), np.float32)}),
            "19 positions, which is no square grid",
        ),
        (lambda a: a.update({POSITIONS: np.ones(17, np.float32)}), "too few axes"),
        (
            lambda a: a.update({"head/kernel": np.ones((21, 13), np.float32)}),
            r"head/kernel \(expected \(21, 11\), found",
        ),
        (
            lambda a: a.update({"embedding/bias": np.full(21, np.nan, np.float32)}),
            "not finite .*: embedding/bias",
        ),
        (
            lambda a: a.update({"embedding/bias": np.ones(21, np.int64)}),
            "not finite floating-point .*: embedding/bias",
        ),
        (
            lambda a: a.update({"embedding/bias": np.array([{}, 1], object)}),
            "embedding/bias is a pickled Python object",
        ),
    ],
)
def test_what_does_not_fit_is_named(change, message, jax, write_npz) -> None:
    arrays = jax()
    change(arrays)
    with pytest.raises(CheckpointError, match=message):
        read_jax_npz(write_npz(arrays))


@pytest.mark.parametrize("heads", [0, 2])
def test_impossible_heads(heads, jax, write_npz) -> None:
    arrays = jax()
    for i in range(2):
        for name in ("query", "key", "value"):
            leaf = f"Transformer/encoderblock_{i}/MultiHeadDotProductAttention_1/{name}/bias"
            arrays[leaf] = np.ones((heads, 7), np.float32)
    with pytest.raises(CheckpointError, match=f"width 21 shared among {heads} heads"):
        read_jax_npz(write_npz(arrays))


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_a_truncated_file(keep, jax, write_npz) -> None:
    path = write_npz(jax())
    whole = path.read_bytes()
    path.write_bytes(whole[: keep if isinstance(keep, int) else int(len(whole) * keep)])
    with pytest.raises(CheckpointError, match=r"vit\.npz is truncated, corrupt or not an \.npz file"):
        read_jax_npz(path)


def test_corrupt_bytes_never_leak_another_error(jax, write_npz) -> None:
    path = write_npz(jax())
    whole = path.read_bytes()
    random = np.random.default_rng(5)
    for _ in range(200):
        broken = bytearray(whole)
        for position in random.integers(0, len(whole), 20):
            broken[position] = random.integers(256)
        path.write_bytes(broken)
        with suppress(CheckpointError):  # a flipped bit in a header's padding may do no harm
            read_jax_npz(path)


def test_a_single_array_is_no_archive(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones(3))
    with pytest.raises(CheckpointError, match="a single array"):
        read_jax_npz(tmp_path / "x.npy")
