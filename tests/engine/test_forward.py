"""Both runtimes hand back the same Trace; what precision costs is bounded."""

import numpy as np
import pytest
import torch

from service.engine.forward import Forward, OpenVinoForward, TorchForward, forward_of, has_openvino
from service.engine.runner import DeviceError, Runner, choose_precision
from service.models.spec import Architecture
from service.models.vit import VisionTransformer
from service.settings import Runtime
from service.types import Capture

ARCH = Architecture((21, 35), 7, width=33, depth=3, heads=3, mlp_width=41, classes=13, prefix_tokens=2)
CPU = torch.device("cpu")
needs_openvino = pytest.mark.skipif(not has_openvino(), reason="the optional runtime is not installed")


def random_vit() -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(ARCH).eval().requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def pixels(batch: int) -> np.ndarray:
    return np.random.default_rng(batch).normal(size=(batch, 3, 21, 35)).astype(np.float32)


def forward(runtime: str, precision: str = "fp32") -> Forward:
    return forward_of(random_vit(), (21, 35), CPU, precision, runtime, threads=2)  # type: ignore[arg-type]


@needs_openvino
@pytest.mark.parametrize("capture", Capture)
def test_openvino_gives_what_torch_gives(capture: Capture) -> None:
    fast, reference = forward("openvino"), forward("torch")
    assert isinstance(fast, OpenVinoForward)
    assert isinstance(reference, TorchForward)
    for batch in (4, 3, 1):
        ours, theirs = fast(pixels(batch), capture), reference(pixels(batch), capture)
        assert (ours.prefix_tokens, ours.grid) == (theirs.prefix_tokens, theirs.grid)
        torch.testing.assert_close(ours.logits, theirs.logits, atol=2e-5, rtol=0)
        if capture is Capture.NONE:
            assert ours.attention is None
        else:
            torch.testing.assert_close(ours.attention, theirs.attention, atol=1e-6, rtol=0)


@needs_openvino
def test_the_logits_of_a_trace_outlive_the_next_forward() -> None:
    fast = forward("openvino")
    first = fast(pixels(2), Capture.NONE)
    before = first.logits.clone()
    fast(pixels(2) + 1, Capture.NONE)
    assert torch.equal(first.logits, before)


@needs_openvino
@pytest.mark.parametrize("capture", [Capture.NONE, Capture.CLS_ROWS, Capture.FUSED_MEAN])
def test_the_halves_of_a_batch_are_what_each_image_gives_alone(capture: Capture) -> None:
    fast = forward("openvino", "bf16")
    assert isinstance(fast, OpenVinoForward)
    assert len(fast.halves) == 2
    batch = pixels(6)
    together = fast(batch, capture)
    attention = together.attention if together.attention is None else together.attention.clone()
    for i in range(len(batch)):
        alone = fast(batch[i : i + 1], capture)
        torch.testing.assert_close(together.logits[i : i + 1], alone.logits, atol=0.05, rtol=0)
        if attention is not None:
            torch.testing.assert_close(attention[i : i + 1], alone.attention, atol=0.01, rtol=0)


@needs_openvino
def test_a_half_that_fails_leaves_the_next_batch_unharmed() -> None:
    fast = forward("openvino", "bf16")
    batch = pixels(4)
    before = fast(batch, Capture.NONE).logits
    with pytest.raises(RuntimeError, match="shape"):
        fast([*batch[:2], *np.zeros((2, 3, 21, 36), np.float32)], Capture.NONE)
    torch.testing.assert_close(fast(batch, Capture.NONE).logits, before)


@pytest.mark.parametrize("runtime", ["torch", pytest.param("openvino", marks=needs_openvino)])
@pytest.mark.parametrize("capture", [Capture.CLS_ROWS, Capture.FUSED_MEAN])
def test_bf16_stays_close_and_its_captures_are_float32(runtime: str, capture: Capture) -> None:
    exact, rounded = forward(runtime)(pixels(3), capture), forward(runtime, "bf16")(pixels(3), capture)
    assert rounded.attention is not None
    assert rounded.attention.dtype == rounded.logits.dtype == torch.float32
    torch.testing.assert_close(
        rounded.attention.sum(-1), torch.ones(rounded.attention.shape[:-1]), atol=2e-2, rtol=0
    )
    torch.testing.assert_close(rounded.attention, exact.attention, atol=0.05, rtol=0)


def test_auto_is_torch_where_torch_is_asked_for_or_the_family_has_no_graph() -> None:
    assert isinstance(forward("torch"), TorchForward)
    assert isinstance(forward_of(torch.nn.Linear(2, 2), (21, 35), CPU, "fp32", "auto", 1), TorchForward)


def test_a_device_or_precision_that_is_not_here_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match=r"no cuda:7 here.*--device cpu"):
        Runner("cuda:7", "auto")
    with pytest.raises(DeviceError, match="fp16 is for CUDA"):
        Runner("cpu", "fp16")
    monkeypatch.setattr("service.engine.runner.has_openvino", lambda: False)
    with pytest.raises(DeviceError, match="pip install openvino"):
        Runner("cpu", "auto", "openvino")


@pytest.mark.parametrize(
    ("capabilities", "runtime", "expected"),
    [
        ({"avx512_bf16", "avx512_vnni"}, "auto", "int8"),
        ({"avx512_bf16", "avx512_vnni"}, "torch", "bf16"),
        ({"avx512_bf16"}, "auto", "bf16"),
        ({"amx_bf16", "avx512_bf16", "avx512_vnni"}, "auto", "bf16"),
        ({"avx512_vnni"}, "auto", "fp32"),
        ({"avx2"}, "auto", "fp32"),
    ],
)
def test_auto_precision_is_the_fastest_that_is_native(
    monkeypatch: pytest.MonkeyPatch, capabilities: set[str], runtime: Runtime, expected: str
) -> None:
    monkeypatch.setattr("service.engine.runner.has_openvino", lambda: True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(capabilities, True))
    assert choose_precision(CPU, "auto", runtime) == expected
    assert choose_precision(CPU, "fp32", runtime) == "fp32"


def test_int8_is_refused_where_it_can_not_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    with pytest.raises(DeviceError, match=r"AVX512-VNNI.*--precision auto"):
        choose_precision(CPU, "int8", "auto")
    with pytest.raises(DeviceError, match="int8 is for CPUs"):
        choose_precision(torch.device("cuda"), "int8", "auto")


@needs_openvino
def test_torch_has_all_threads_only_where_it_runs_the_model() -> None:
    assert Runner("cpu", "fp32", "torch", threads=3).torch_threads == 3
    assert Runner("cpu", "fp32", "openvino", threads=3).torch_threads == 1
    before = torch.get_num_threads()
    seen = []
    fast = forward("openvino")
    assert isinstance(fast, OpenVinoForward)
    fast.torch.module.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
    fast(pixels(1), Capture.FUSED_MAX)
    assert (seen, torch.get_num_threads()) == ([2], before)
