"""The ViT against a brute-force reference: written out with loops over images, heads and queries."""

import math

import numpy as np
import pytest
import torch

from service.models.spec import Architecture, architecture
from service.models.vit import VisionTransformer, resample_positions
from service.types import Capture

# prime and non-square: 3 x 5 patches of 7 pixels, 2 prefix tokens, 3 heads of 11 channels
ARCH = Architecture((21, 35), 7, width=33, depth=2, heads=3, mlp_width=41, classes=13, prefix_tokens=2)


@pytest.fixture
def model() -> VisionTransformer:
    torch.manual_seed(0)
    vit = VisionTransformer(ARCH).eval()
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return vit


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(2, 3, 21, 35, generator=torch.Generator().manual_seed(1))


def brute_force(model: VisionTransformer, image: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Logits and every head's attention (L, H, N, N) of one image, in float64, by the paper's formulas."""
    state = {key: value.double().numpy() for key, value in model.state_dict().items()}

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + ARCH.norm_eps)
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    def gelu(x: np.ndarray) -> np.ndarray:
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))

    tokens = list(state["prefix"])
    for row in range(3):
        for column in range(5):
            patch = image.double().numpy()[:, 7 * row : 7 * row + 7, 7 * column : 7 * column + 7]
            projected = np.einsum("dcij,cij->d", state["patch_embed.weight"], patch)
            tokens.append(projected + state["patch_embed.bias"] + state["positions"][row, column])
    x = np.stack(tokens)
    attentions = []
    for i in range(ARCH.depth):
        qkv = linear(f"blocks.{i}.qkv", norm(f"blocks.{i}.norm1", x))
        heads, attended = [], []
        for h in range(3):
            q, k, v = (qkv[:, 33 * part + 11 * h : 33 * part + 11 * h + 11] for part in range(3))
            weights = np.exp(q @ k.T / math.sqrt(11))
            weights /= weights.sum(1, keepdims=True)
            heads.append(weights)
            attended.append(weights @ v)
        attentions.append(heads)
        x = x + linear(f"blocks.{i}.proj", np.concatenate(attended, axis=1))
        x = x + linear(f"blocks.{i}.fc2", gelu(linear(f"blocks.{i}.fc1", norm(f"blocks.{i}.norm2", x))))
    return linear("head", norm("norm", x)[0]), np.array(attentions)


def expected_capture(attention: np.ndarray, capture: Capture) -> np.ndarray:
    """What `capture` should be, from every head's attention (L, H, N, N)."""
    return {
        Capture.CLS_ROWS: attention[:, :, 0].mean(1),
        Capture.FUSED_MEAN: attention.mean(1),
        Capture.FUSED_MAX: attention.max(1),
        Capture.FUSED_MIN: attention.min(1),
        Capture.PER_HEAD: attention,
    }[capture]


@pytest.mark.parametrize("capture", Capture)
@torch.inference_mode()
def test_logits_and_captures_agree_with_brute_force(
    model: VisionTransformer, pixels: torch.Tensor, capture: Capture
) -> None:
    trace = model(pixels, capture)
    assert trace.prefix_tokens == 2
    assert trace.grid == (3, 5)
    for i, image in enumerate(pixels):
        logits, attention = brute_force(model, image)
        np.testing.assert_allclose(trace.logits[i], logits, atol=1e-4)
        if capture is Capture.NONE:
            assert trace.attention is None
        else:
            np.testing.assert_allclose(trace.attention[i], expected_capture(attention, capture), atol=1e-6)


@torch.inference_mode()
def test_logits_do_not_change_with_what_is_captured(model: VisionTransformer, pixels: torch.Tensor) -> None:
    plain = model(pixels, Capture.NONE).logits
    for capture in Capture:
        torch.testing.assert_close(model(pixels, capture).logits, plain, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_bf16_captures_stay_float32_and_rows_sum_to_one(
    model: VisionTransformer, pixels: torch.Tensor
) -> None:
    trace = model.bfloat16()(pixels.bfloat16(), Capture.PER_HEAD)
    assert trace.attention.dtype == trace.logits.dtype == torch.float32
    torch.testing.assert_close(trace.attention.sum(-1), torch.ones(2, 2, 3, 17))


@torch.inference_mode()
def test_distilled_logits_are_the_mean_of_both_heads() -> None:
    arch = Architecture((14, 21), 7, 22, 1, 2, 31, classes=5, prefix_tokens=2, distilled=True)
    model = VisionTransformer(arch).eval()
    tokens, _ = model.encode(model.embed(torch.randn(1, 3, 14, 21)), Capture.NONE)
    expected = (model.head(tokens[:, 0]) + model.head_dist(tokens[:, 1])) / 2
    torch.testing.assert_close(model.classify(tokens), expected)


@torch.inference_mode()
def test_another_input_size_resamples_positions(model: VisionTransformer) -> None:
    trace = model(torch.randn(1, 3, 49, 14), Capture.CLS_ROWS)
    assert trace.grid == (7, 2)
    assert trace.attention.shape == (1, 2, 2 + 14)


def test_positions_keep_rows_and_columns_apart() -> None:
    rows = torch.arange(5.0)[:, None, None].expand(5, 3, 1)
    resampled = resample_positions(rows, (11, 7), "bicubic")
    assert resampled.shape == (11, 7, 1)
    assert (resampled.diff(dim=0)[2:-2] > 0).all()
    torch.testing.assert_close(resampled[:, :1].expand(11, 7, 1), resampled)
    assert resample_positions(rows, (5, 3), "bicubic") is rows


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("Ti/16", 5_717_416), ("S/16", 22_050_664), ("B/16", 86_567_656), ("B/32", 88_224_232)],
)
def test_named_variants_have_the_published_parameter_counts(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = VisionTransformer(architecture(name))
    cls_position = model.arch.width  # folded into the prefix token
    assert sum(parameter.numel() for parameter in model.parameters()) + cls_position == parameters


@pytest.mark.parametrize("name", ["B", "X/16", "B/x", "/16", "B/"])
def test_a_name_that_is_no_variant_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not VARIANT/PATCH"):
        architecture(name)
