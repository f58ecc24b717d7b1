"""What bf16 costs on real photographs, against torch in fp32: labels and maps must hold."""

from pathlib import Path

import numpy as np
import pytest
import torch

from service.engine.forward import forward_of, has_openvino
from service.explain.blocks import BlockMaps
from service.explain.rollout import Rollout
from service.imaging.decode import decode
from service.imaging.preprocess import preprocess
from service.models.build import build
from service.types import Capture
from service.weights.assign import assign
from service.weights.detect import read_checkpoint

Answers = list[tuple[int, np.ndarray, np.ndarray]]
"""Each photograph's best class, rollout and block maps."""


@pytest.fixture(scope="module")
def photographs(test_data: Path) -> list[np.ndarray]:
    """The pixels of every photograph, as ViT-Tiny takes them."""
    how = read_checkpoint(test_data / "vit-tiny/vit_tiny_patch16_224.safetensors").preprocess
    paths = sorted(path for path in (test_data / "photos").rglob("*") if path.is_file())
    return [preprocess(decode(path.read_bytes(), 10**8).rgb, how)[None] for path in paths]


def answers(test_data: Path, photographs: list[np.ndarray], runtime: str, precision: str) -> Answers:
    checkpoint = read_checkpoint(test_data / "vit-tiny/vit_tiny_patch16_224.safetensors")
    model = build("vit", checkpoint.architecture).requires_grad_(False)
    assign(model, checkpoint.state)
    forward = forward_of(model, (224, 224), torch.device("cpu"), precision, runtime, 2)  # type: ignore[arg-type]
    found = []
    for pixels in photographs:
        trace = forward(pixels, Capture.FUSED_MEAN)
        best, rollout = int(trace.logits.argmax()), Rollout()(trace).numpy()
        blocks = BlockMaps()(forward(pixels, Capture.CLS_ROWS)).numpy()[0]
        found.append((best, rollout, blocks))
    return found


@pytest.fixture(scope="module")
def exact(test_data: Path, photographs: list[np.ndarray]) -> Answers:
    """The reference: torch in fp32."""
    return answers(test_data, photographs, "torch", "fp32")


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_bf16_keeps_labels_and_maps(
    test_data: Path, photographs: list[np.ndarray], exact: Answers, runtime: str
) -> None:
    if runtime == "openvino" and not has_openvino():
        pytest.skip("the optional runtime is not installed")
    rounded = answers(test_data, photographs, runtime, "bf16")
    agree = [ours[0] == theirs[0] for ours, theirs in zip(rounded, exact, strict=True)]
    assert np.mean(agree) >= 0.99
    for ours, theirs in zip(rounded, exact, strict=True):
        assert np.corrcoef(ours[1].ravel(), theirs[1].ravel())[0, 1] >= 0.99
        for our_block, their_block in zip(ours[2], theirs[2], strict=True):
            assert np.corrcoef(our_block.ravel(), their_block.ravel())[0, 1] >= 0.99
