"""transformers itself is the peer: random weights, the same numbers."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)

from service.errors import CheckpointError
from service.types import Capture, Preprocess
from service.weights.huggingface import read_huggingface
from service.weights.huggingface_preprocess import read_preprocess

SMALL = {
    "hidden_size": 42,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 29,
    "image_size": 20,
    "patch_size": 5,
    "num_labels": 11,
    "attn_implementation": "eager",
}
BASE = {
    "num_hidden_layers": 2,
    "attn_implementation": "eager",
    "num_labels": 7,
}  # ViT-B/16, but for its depth
PROCESSOR = {"image_processor_type": "ViTImageProcessor", "size": {"height": 20, "width": 20}}
HALF = (0.5, 0.5, 0.5)


def scattered(model: PreTrainedModel) -> PreTrainedModel:
    """Every parameter random: those that transformers sets to zero or one would hide a mistake."""
    torch.manual_seed(3)
    for parameter in model.parameters():
        fan_in = parameter[0].numel() if parameter.ndim in (2, 4) else 2
        torch.nn.init.normal_(parameter, std=1.5 / fan_in**0.5)
    return model.eval()


def save(model: PreTrainedModel, folder: Path, processor: dict = PROCESSOR, **options: object) -> Path:
    model.save_pretrained(folder, **options)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return save(scattered(ViTForImageClassification(ViTConfig(**SMALL))), tmp_path)


def edit(path: Path, **fields: object) -> None:
    """Sets fields of a JSON file; None removes one."""
    merged = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in merged.items() if value is not None}))


PEERS = {
    "ViT-B/16": (ViTForImageClassification, ViTConfig(**BASE), (224, 224)),
    "ViT-B/16 at 160 x 208": (ViTForImageClassification, ViTConfig(**BASE), (160, 208)),
    "small": (ViTForImageClassification, ViTConfig(**SMALL), (20, 20)),
    "not square": (ViTForImageClassification, ViTConfig(**SMALL | {"image_size": (15, 25)}), (15, 25)),
    "no qkv bias": (ViTForImageClassification, ViTConfig(**SMALL, qkv_bias=False), (20, 20)),
    "norm eps": (ViTForImageClassification, ViTConfig(**SMALL, layer_norm_eps=0.1), (20, 20)),
    "DeiT": (DeiTForImageClassification, DeiTConfig(**SMALL), (20, 20)),
    "DeiT at 30 x 35": (DeiTForImageClassification, DeiTConfig(**SMALL), (30, 35)),
    "DeiT with teacher": (DeiTForImageClassificationWithTeacher, DeiTConfig(**SMALL), (20, 20)),
    "DeiT with teacher at 35 x 30": (DeiTForImageClassificationWithTeacher, DeiTConfig(**SMALL), (35, 30)),
}


@pytest.mark.parametrize(("kind", "config", "size"), PEERS.values(), ids=PEERS)
def test_transformers_computes_the_same(kind, config, size, tmp_path: Path, run) -> None:
    peer = scattered(kind(config))
    checkpoint = read_huggingface(save(peer, tmp_path))
    pixels = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    resampled = size != checkpoint.architecture.trained_size
    with torch.inference_mode():
        expected = peer(pixels, output_attentions=True, interpolate_pos_encoding=resampled)
    trace = run(checkpoint, pixels, Capture.PER_HEAD)
    torch.testing.assert_close(trace.logits, expected.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(trace.attention, torch.stack(expected.attentions, 1), atol=1e-5, rtol=1e-4)
    assert trace.attention.std() > 1e-3  # not uniform, or the comparison says little
    assert checkpoint.labels == [f"LABEL_{i}" for i in range(config.num_labels)]


@pytest.mark.parametrize("options", [{"max_shard_size": "10KB"}, {"save_original_format": False}], ids=str)
def test_shards_and_module_names_are_the_same_model(options, small: Path, tmp_path: Path) -> None:
    peer = scattered(ViTForImageClassification(ViTConfig(**SMALL)))
    other = save(peer, tmp_path / "other", **options)
    names = [name for file in other.glob("*.safetensors") for name in load_file(file)]
    if "max_shard_size" in options:
        assert len(list(other.glob("*.safetensors"))) > 2
        assert "vit.encoder.layer.0.attention.attention.query.weight" in names
    else:
        assert "vit.layers.0.attention.q_proj.weight" in names
    one, two = read_huggingface(small), read_huggingface(other)
    assert one.architecture == two.architecture
    assert one.state.keys() == two.state.keys()
    for name, tensor in one.state.items():
        assert torch.equal(two.state[name], tensor), name


def test_the_pooler_is_ignored_by_name(small: Path, caplog) -> None:
    file = small / "model.safetensors"
    pooler = {f"vit.pooler.dense.{leaf}": torch.ones(42) for leaf in ("weight", "bias")}
    save_file(load_file(file) | pooler, file)
    with caplog.at_level("INFO"):
        read_huggingface(small)
    assert "vit.pooler.dense.bias, vit.pooler.dense.weight" in caplog.text


def test_labels_come_in_class_order(small: Path) -> None:
    edit(small / "config.json", id2label={str(i): f"class {i}" for i in reversed(range(11))})
    assert read_huggingface(small).labels == [f"class {i}" for i in range(11)]
    edit(small / "config.json", id2label=None)
    assert read_huggingface(small).labels is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"architectures": ["ViTModel"]},
            "the architecture is ViTModel; supported are ViTForImageClassification",
        ),
        ({"architectures": []}, "the architecture is none; supported are"),
        ({"architectures": None}, "config.json: architectures is missing"),
        ({"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new'; the model computes exact GELU"),
        (
            {"num_hidden_layers": 10**9},
            "num_hidden_layers is 1000000000, the weights hold 2 blocks below vit.enc",
        ),
        ({"num_attention_heads": 4}, "width 42 shared among 4 heads"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0. Input should be greater than 0"),
        ({"image_size": 25}, r"position_embeddings \(expected \(1, 26, 42\), found \(1, 17, 42\)\)"),
        ({"image_size": 3}, "describes no ViT: patch 5, trained size \\(3, 3\\)"),
        ({"patch_size": [5, 4]}, "patch_size is 5 x 4; the model's patches are square"),
        ({"num_channels": 1}, "num_channels is 1. Input should be 3"),
        ({"qkv_bias": False}, r"left over: vit\.encoder\.layer\.\d\.attention\.attention\.\w+\.bias"),
        ({"id2label": {"0": "a", "2": "b"}}, "id2label does not number its labels 0, 1, 2"),
        ({"hidden_size": "wide"}, "hidden_size is 'wide'. Input should be a valid integer"),
    ],
)
def test_a_config_that_the_model_cannot_follow(fields, message, small: Path) -> None:
    edit(small / "config.json", **fields)
    with pytest.raises(CheckpointError, match=message):
        read_huggingface(small)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("classifier.bias"), "missing: classifier.bias"),
        (
            lambda t: t.update({"vit.embeddings.mask_token": torch.ones(1)}),
            "left over: vit.embeddings.mask_token",
        ),
        (lambda t: t.update({"classifier.weight": torch.ones(11, 41)}), r"found \(11, 41\)"),
        (
            lambda t: t.update({"vit.layernorm.bias": torch.full((42,), torch.nan)}),
            "not finite .*: vit.layernorm.bias",
        ),
        (
            lambda t: t.pop("vit.encoder.layer.1.output.dense.bias"),
            "missing: vit.encoder.layer.1.output.dense.bias",
        ),
    ],
)
def test_tensors_that_do_not_fit(change, message, small: Path) -> None:
    tensors = load_file(small / "model.safetensors")
    change(tensors)
    save_file(tensors, small / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        read_huggingface(small)


def test_files_that_are_absent_or_cut(small: Path) -> None:
    weights, index = small / "model.safetensors", small / "model.safetensors.index.json"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="truncated, corrupt or not a safetensors file"):
        read_huggingface(small)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors can't be read: No such file"):
        read_huggingface(small)
    index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"model-00001-of-00002\.safetensors can't be read"):
        read_huggingface(small)
    index.write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
    with pytest.raises(
        CheckpointError, match=r"names the shard '\.\./model\.safetensors'; a shard lies beside"
    ):
        read_huggingface(small)


def test_a_missing_processor(small: Path) -> None:
    (small / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json can't be read: No such file"):
        read_huggingface(small)


IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
FORMS = {
    "google/vit-base-patch16-224, 2021": (
        {"do_normalize": True, "do_resize": True, "image_mean": HALF, "image_std": HALF, "size": 224},
        Preprocess((224, 224), (224, 224), "bilinear", HALF, HALF),
    ),
    "google/vit-base-patch16-384": (
        {"feature_extractor_type": "ViTFeatureExtractor", "resample": 2, "size": 384},
        Preprocess((384, 384), (384, 384), "bilinear", HALF, HALF),
    ),
    "facebook/deit-base-distilled-patch16-224": (
        IMAGENET
        | {"feature_extractor_type": "DeiTFeatureExtractor", "size": 256, "crop_size": 224}
        | {"do_center_crop": True, "resample": 3},
        Preprocess((224, 224), (256, 256), "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ),
    "DeiTImageProcessor's defaults": (
        {"image_processor_type": "DeiTImageProcessor"},
        Preprocess((224, 224), (256, 256), "bicubic", HALF, HALF),
    ),
    "shorter side and crop": (
        {"image_processor_type": "ViTImageProcessorFast", "size": {"shortest_edge": 256}, "resample": 1}
        | {"do_center_crop": True, "crop_size": {"height": 224, "width": 192}},
        Preprocess((224, 192), 256, "lanczos", HALF, HALF),
    ),
    "not normalised": (
        {"do_normalize": False, "size": {"height": 160, "width": 208}, "rescale_factor": 0.00392156862745098},
        Preprocess((160, 208), (160, 208), "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    ),
}


@pytest.mark.parametrize(("fields", "expected"), FORMS.values(), ids=FORMS)
def test_every_form_of_processor(fields, expected, tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(fields))
    assert read_preprocess(path, "vit") == expected


def test_the_family_decides_where_no_processor_is_named(tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_text("{}")
    assert read_preprocess(path, "vit").resize == (224, 224)
    assert read_preprocess(path, "deit").resize == (256, 256)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"image_processor_type": "CLIPImageProcessor"},
            "the processor is CLIPImageProcessor; supported are",
        ),
        ({"do_resize": False}, "do_resize is false"),
        ({"do_rescale": False}, "do_rescale is false"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor is 0.0078"),
        ({"resample": 0}, "resample is 0; supported are 1"),
        ({"do_pad": True}, "do_pad is true"),
        ({"image_mean": [0.5]}, "image_mean.1 is missing"),
        ({"size": {"shortest_edge": 224}}, "no centre crop, so images differ in shape"),
        ({"size": {"longest_edge": 224}}, "size is {'longest_edge': 224}; expected a number"),
        ({"size": {"height": 224}}, "expected a number, height and width, or shortest_edge"),
        ({"size": {"shortest_edge": 224, "longest_edge": 300}}, "expected a number"),
        ({"do_center_crop": True, "crop_size": {"shortest_edge": 3}}, "crop_size is {'shortest_edge': 3}"),
    ],
)
def test_what_no_preprocess_can_say_is_refused(fields, message, tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(fields))
    with pytest.raises(CheckpointError, match=message):
        read_preprocess(path, "vit")
