"""The OpenVINO graph against the torch model that it was built from."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from service.models.spec import Architecture
from service.models.vit import VisionTransformer
from service.types import Capture

openvino = pytest.importorskip("openvino", reason="the optional runtime is not installed")

ARCH = Architecture((21, 35), 7, width=33, depth=3, heads=3, mlp_width=41, classes=13, prefix_tokens=2)


def random_vit(arch: Architecture) -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(arch).eval().requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("arch", [ARCH, replace(ARCH, distilled=True), replace(ARCH, norm_eps=1e-3)])
@pytest.mark.parametrize("size", [(21, 35), (49, 14)])
@torch.inference_mode()
def test_logits_and_attention_equal_torch_for_every_batch_size(
    arch: Architecture, size: tuple[int, int]
) -> None:
    from service.models.vit_graph import build_graph

    model = random_vit(arch)
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    graph = openvino.Core().compile_model(build_graph(model, size, "fp32"), "CPU", options)
    for batch in (1, 3, 2):
        pixels = torch.randn(batch, 3, *size)
        trace = model(pixels, Capture.FUSED_MEAN)
        logits, attention = graph([pixels.numpy()]).values()
        np.testing.assert_allclose(logits, trace.logits, atol=2e-5)
        np.testing.assert_allclose(attention, trace.attention, atol=1e-6)
