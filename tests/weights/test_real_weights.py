"""A real model in two formats against the reference outputs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import Float
from PIL import Image

from service.models.vit import VisionTransformer
from service.types import Capture
from service.weights.assign import assign
from service.weights.checkpoint import Checkpoint
from service.weights.detect import read_checkpoint, read_labels

FILES = ["vit_tiny_patch16_224.safetensors", "ViT-Ti_16-224.npz"]
PHOTOS = ["codr_selected-n02127052_10040", "imagenet_stubs-koala", "imagenet_stubs-manhole_cover"]
PHOTOS += ["imagenet_stubs-tractor"]


@pytest.fixture(scope="module", params=FILES)
def checkpoint(request: pytest.FixtureRequest, test_data: Path) -> Checkpoint:
    return read_checkpoint(test_data / "vit-tiny" / request.param)


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint) -> VisionTransformer:
    model = VisionTransformer(checkpoint.architecture).eval()
    assign(model, checkpoint.state)
    return model


def test_both_files_are_the_same_model(test_data: Path) -> None:
    one, other = (read_checkpoint(test_data / "vit-tiny" / name) for name in FILES)
    assert one.architecture == other.architecture
    assert one.preprocess == other.preprocess
    assert one.state.keys() == other.state.keys()
    for name, tensor in one.state.items():
        assert torch.equal(tensor, other.state[name]), name


def test_labels_number_the_classes(test_data: Path) -> None:
    labels = read_labels(test_data / "vit-tiny" / "ilsvrc2012_wordnet_lemmas.txt")
    named = read_checkpoint(test_data / "vit-tiny" / FILES[0], labels)
    assert named.labels is not None
    assert len(named.labels) == 1000
    assert "koala" in named.labels[105]


@pytest.mark.parametrize("photo", PHOTOS)
def test_reference_outputs(
    photo: str, model: VisionTransformer, checkpoint: Checkpoint, test_data: Path, golden: Path
) -> None:
    expected = np.load(golden / "seed-script" / f"{photo}.npz", allow_pickle=False)
    pixels = prepare(test_data / "photos" / str(expected["photo"]), checkpoint)
    with torch.inference_mode():
        fused = model(pixels, Capture.FUSED_MEAN)
        rows = model(pixels, Capture.CLS_ROWS)
    np.testing.assert_allclose(fused.logits[0].numpy(), expected["logits"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(rollout(fused.attention[0]), expected["rollout_grid"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(cls_grids(rows.attention[0]), expected["block_grids"], rtol=0, atol=1e-5)


def prepare(photo: Path, checkpoint: Checkpoint) -> Float[torch.Tensor, "1 3 height width"]:
    height, width = checkpoint.preprocess.input_size
    image = Image.open(photo).convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    scaled = (np.asarray(image, np.float32) / 255 - checkpoint.preprocess.mean) / checkpoint.preprocess.std
    return torch.from_numpy(scaled.astype(np.float32)).permute(2, 0, 1)[None]


def rollout(fused: Float[torch.Tensor, "block token token"]) -> Float[np.ndarray, "14 14"]:
    product = torch.eye(fused.shape[-1])
    for attention in fused:
        with_residual = attention + torch.eye(len(attention))
        product = with_residual / with_residual.sum(-1, keepdim=True) @ product
    return product[0, 1:].view(14, 14).numpy()


def cls_grids(rows: Float[torch.Tensor, "block token"]) -> Float[np.ndarray, "block 14 14"]:
    fused = rows.clone()
    fused[:, 0] += 1
    return (fused / fused.sum(-1, keepdim=True))[:, 1:].reshape(-1, 14, 14).numpy()
