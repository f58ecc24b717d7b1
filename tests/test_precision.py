"""What bf16 and int8 cost on real photographs, against torch in fp32: labels and maps must hold."""

from pathlib import Path

import numpy as np
import pytest
import torch

from service.engine.forward import forward_of, has_openvino
from service.explain.blocks import BlockMaps
from service.explain.rollout import Rollout
from service.imaging.preprocess import preprocess
from service.models.build import build
from service.types import Capture
from service.weights.assign import assign
from service.weights.detect import read_checkpoint
from tests.pictures import decoded

Answers = list[tuple[int, np.ndarray, np.ndarray]]
"""Each photograph's best class, rollout and block maps."""


@pytest.fixture(scope="module")
def photographs(test_data: Path) -> list[np.ndarray]:
    """The pixels of every photograph, as ViT-Tiny takes them."""
    how = read_checkpoint(test_data / "vit-tiny/vit_tiny_patch16_224.safetensors").preprocess
    paths = sorted(path for path in (test_data / "photos").rglob("*") if path.is_file())
    return [preprocess(decoded(path.read_bytes()), how)[None] for path in paths]


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


@pytest.mark.parametrize(
    ("runtime", "precision"), [("torch", "bf16"), ("openvino", "bf16"), ("openvino", "int8")]
)
def test_rounding_keeps_labels_and_maps(
    test_data: Path, photographs: list[np.ndarray], exact: Answers, runtime: str, precision: str
) -> None:
    if runtime == "openvino" and not has_openvino():
        pytest.skip("the optional runtime is not installed")
    if precision == "int8" and not torch.cpu.get_capabilities().get("avx512_vnni"):
        pytest.skip("this CPU does not multiply int8")
    rounded = answers(test_data, photographs, runtime, precision)
    agree = [ours[0] == theirs[0] for ours, theirs in zip(rounded, exact, strict=True)]
    rollouts = [correlation(ours[1], theirs[1]) for ours, theirs in zip(rounded, exact, strict=True)]
    blocks = [
        correlation(our_block, their_block)
        for ours, theirs in zip(rounded, exact, strict=True)
        for our_block, their_block in zip(ours[2], theirs[2], strict=True)
    ]
    print(f"{sum(agree)} of {len(agree)} labels, rollouts {min(rollouts):.4f}, blocks {min(blocks):.4f}")
    assert np.mean(agree) >= 0.99
    assert min(rollouts) >= 0.99
    assert min(blocks) >= 0.99


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])
