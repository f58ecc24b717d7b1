from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from service.errors import CheckpointError
from service.types import Preprocess
from service.weights.timm import read_timm


def forward(t, pixels, heads=3):
    """timm/models/vision_transformer.py's and deit.py's forward in float64: logits and attention."""
    t = {name: tensor.double() for name, tensor in t.items()}
    x = F.conv2d(pixels.double(), t["patch_embed.proj.weight"], t["patch_embed.proj.bias"], stride=5)
    x = x.flatten(2).transpose(1, 2)
    prefix = torch.cat([t[name] for name in ("cls_token", "dist_token", "reg_token") if name in t], 1)
    prefix = prefix.expand(len(x), -1, -1)
    if t["pos_embed"].shape[1] == x.shape[1]:  # no_embed_class
        x = torch.cat([prefix, x + t["pos_embed"]], 1)
    else:
        x = torch.cat([prefix, x], 1) + t["pos_embed"]
    attention = []
    for i in range(2):
        block = f"blocks.{i}."
        y = norm(x, t, block + "norm1") @ t[block + "attn.qkv.weight"].T
        q, k, v = (y + t.get(block + "attn.qkv.bias", 0)).unflatten(2, (3, heads, 7)).permute(2, 0, 3, 1, 4)
        attention.append((q @ k.mT / 7**0.5).softmax(-1))
        y = linear((attention[-1] @ v).transpose(1, 2).flatten(2), t, block + "attn.proj")
        x = x + t.get(block + "ls1.gamma", 1) * y
        y = linear(F.gelu(linear(norm(x, t, block + "norm2"), t, block + "mlp.fc1")), t, block + "mlp.fc2")
        x = x + t.get(block + "ls2.gamma", 1) * y
    x = norm(x, t, "norm")
    logits = linear(x[:, 0], t, "head")
    if "head_dist.weight" in t:
        logits = (logits + linear(x[:, 1], t, "head_dist")) / 2
    return logits, torch.stack(attention, 1)


def norm(x, t, name):
    return F.layer_norm(x, x.shape[-1:], t[name + ".weight"], t[name + ".bias"], eps=1e-6)


def linear(x, t, name):
    return F.linear(x, t[name + ".weight"], t[name + ".bias"])


KINDS = {
    "plain": {},
    "not square": {"grid": (3, 5)},
    "distilled": {"dist": True},
    "registers": {"registers": 3},
    "registers without positions": {"registers": 4, "no_embed_class": True},
    "layer scale": {"layer_scale": True, "no_embed_class": True},
    "no qkv bias": {"qkv_bias": False},
    "all": {"dist": True, "registers": 2, "layer_scale": True, "qkv_bias": False, "grid": (2, 7)},
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_kind_computes_the_definition(kind, timm, config, write_timm, run) -> None:
    rows, columns = kind.get("grid", (4, 4))
    tensors = timm(**kind)
    checkpoint = read_timm(write_timm(tensors, config(rows * 5, columns * 5)))
    pixels = torch.randn(2, 3, rows * 5, columns * 5, generator=torch.Generator().manual_seed(2))
    trace = run(checkpoint, pixels)
    logits, attention = forward(tensors, pixels)
    torch.testing.assert_close(trace.logits.double(), logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(trace.attention.double(), attention, atol=1e-6, rtol=0)
    arch = checkpoint.architecture
    assert arch.trained_size == (rows * 5, columns * 5)
    assert arch.prefix_tokens == 1 + kind.get("dist", 0) + kind.get("registers", 0)
    assert arch.distilled is kind.get("dist", False)


def test_a_bare_file_takes_the_official_preprocessing(timm, tmp_path: Path) -> None:
    save_file(timm(width=192), tmp_path / "bare.safetensors")
    checkpoint = read_timm(tmp_path / "bare.safetensors")
    half = (0.5, 0.5, 0.5)
    assert checkpoint.preprocess == Preprocess((20, 20), (20, 20), "bilinear", half, half)
    assert checkpoint.architecture.heads == 3
    assert checkpoint.architecture.position_interpolation == "bicubic_antialias"


@pytest.mark.parametrize("prefixed", [True, False])
def test_a_bare_file_tells_prefix_positions_by_their_number(prefixed, timm, tmp_path: Path) -> None:
    save_file(timm(width=192, registers=4, no_embed_class=not prefixed), tmp_path / "bare.safetensors")
    arch = read_timm(tmp_path / "bare.safetensors").architecture
    assert (arch.grid, arch.prefix_tokens) == ((4, 4), 5)


def test_half_precision_becomes_float32(timm, write_timm) -> None:
    halved = {name: tensor.bfloat16() for name, tensor in timm().items()}
    state = read_timm(write_timm(halved)).state
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    assert torch.equal(state["head.weight"], halved["head.weight"].float())


MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


@pytest.mark.parametrize(
    ("pretrained", "expected"),
    [
        ({}, Preprocess((20, 20), 22, "bicubic", MEAN, STD)),
        ({"crop_pct": 1.0, "interpolation": "bilinear"}, Preprocess((20, 20), 20, "bilinear", MEAN, STD)),
        ({"crop_mode": "squash"}, Preprocess((20, 20), (22, 22), "bicubic", MEAN, STD)),
        ({"input_size": [3, 30, 30]}, Preprocess((30, 30), 33, "bicubic", MEAN, STD)),
    ],
)
def test_preprocessing(pretrained, expected, timm, config, write_timm) -> None:
    fields = config()
    fields["pretrained_cfg"] |= pretrained
    assert read_timm(write_timm(timm(), fields)).preprocess == expected


NAMES = [f"n{i:08}" for i in range(11)]


@pytest.mark.parametrize(
    "fields",
    [
        {"label_names": NAMES},
        {"label_names": {str(i): name for i, name in enumerate(NAMES)}},
        {
            "label_names": [f"n{i}" for i in range(11)],
            "label_descriptions": {f"n{i}": NAMES[i] for i in range(11)},
        },
    ],
)
@pytest.mark.parametrize("inside", [True, False])
def test_labels(fields, inside, timm, config, write_timm) -> None:
    stated = config()
    (stated["pretrained_cfg"] if inside else stated).update(fields)
    assert read_timm(write_timm(timm(), stated)).labels == NAMES


def test_the_oldest_config_is_flat(timm, config, write_timm) -> None:
    fields = config()
    flat = fields | fields.pop("pretrained_cfg")
    assert read_timm(write_timm(timm(), flat)).preprocess.resize == 22


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(architecture="beit_base_patch16_224"), "beit_base_patch16_224 is no plain ViT"),
        (lambda c: c.update(architecture="vit_base_clip_quickgelu_224"), "no plain ViT"),
        (lambda c: c.update(global_pool="avg"), "global_pool is 'avg'; the head must read the CLS token"),
        (
            lambda c: c["model_args"].update(global_pool="avg"),
            "model_args.global_pool is 'avg'. Input should be",
        ),
        (lambda c: c["model_args"].update(act_layer="relu"), "model_args.act_layer is 'relu'. Extra inputs"),
        (lambda c: c["model_args"].pop("num_heads"), "nothing tells how many heads a ViT of width 21 has"),
        (lambda c: c["model_args"].update(num_heads=2), "width 21 shared among 2 heads"),
        (
            lambda c: c["model_args"].update(img_size=25),
            "17 positions, but config.json's input of 25 x 25 makes 5",
        ),
        (lambda c: c["pretrained_cfg"].update(crop_mode="border"), "crop_mode 'border' at 20 x 20"),
        (
            lambda c: c["pretrained_cfg"].update(interpolation="random"),
            "interpolation is 'random'; supported are bil",
        ),
        (lambda c: c["pretrained_cfg"].update(mean=[1]), "config.json: pretrained_cfg.mean.1 is missing"),
        (
            lambda c: c["pretrained_cfg"].update(label_names={"0": "a", "2": "c"}),
            "does not number its labels",
        ),
        (lambda c: c.pop("architecture"), "config.json: architecture is missing"),
    ],
)
def test_a_config_that_the_model_cannot_follow(change, message, timm, config, write_timm) -> None:
    fields = config()
    change(fields)
    with pytest.raises(CheckpointError, match=message):
        read_timm(write_timm(timm(), fields))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("norm.bias"), "missing: norm.bias"),
        (lambda t: t.pop("blocks.1.attn.qkv.bias"), r"missing: blocks\.1\.attn\.qkv\.bias"),
        (lambda t: t.update({"blocks.1.ls1.gamma": torch.ones(21)}), r"left over: blocks\.1\.ls1\.gamma"),
        (lambda t: t.update({"norm.bias": torch.ones(1)}), r"norm\.bias \(expected \(21,\), found \(1,\)\)"),
        (lambda t: t.update({"norm.bias": torch.full((21,), torch.inf)}), "not finite .*: norm.bias"),
        (lambda t: t.update({"cls_token": torch.ones(21)}), "cls_token has shape .*, too few axes"),
        (lambda t: t.update({"fc_norm.weight": torch.ones(21)}), "its head reads the tokens' average"),
        (lambda t: t.pop("cls_token"), "holds no cls_token: its head reads the tokens' average"),
        (lambda t: t.update({"norm_pre.weight": torch.ones(21)}), "a norm before the blocks"),
        (lambda t: t.update({"vit.x": torch.ones(1)}), "Give the folder that holds config.json"),
        (lambda t: t.clear(), "missing: cls_token, pos_embed, .* and 9 more"),
    ],
)
def test_tensors_that_do_not_fit(change, message, timm, write_timm) -> None:
    tensors = timm()
    change(tensors)
    with pytest.raises(CheckpointError, match=message):
        read_timm(write_timm(tensors))


@pytest.mark.parametrize("keep", [0, 7, 100, 5000])
def test_a_truncated_file(keep, timm, write_timm) -> None:
    folder = write_timm(timm())
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors is truncated, corrupt or not a safetensors file"
    ):
        read_timm(folder)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe", b"null", b"3"])
def test_a_config_that_is_no_object(text, timm, write_timm) -> None:
    folder = write_timm(timm())
    (folder / "config.json").write_bytes(text)
    with pytest.raises(CheckpointError, match=r"config\.json: "):
        read_timm(folder)
