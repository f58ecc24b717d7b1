"""A store, something to put into it, and a hub and a bucket to pull from."""

import io
import threading

import numpy as np
import pytest
import torch
from httpx_retries import Retry

from service.store import download
from service.store import pull as module
from service.store.registry import Registry
from service.weights.checkpoint import Checkpoint

from .stand_in import LABELS, NPZ, StandIn, serve
from .tiny import saved, tiny


@pytest.fixture
def checkpoint() -> Checkpoint:
    return tiny()


@pytest.fixture
def registry(tmp_path) -> Registry:
    return Registry(tmp_path / "store")


@pytest.fixture(scope="session")
def tiny_vit():
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        image_size=28,
        patch_size=7,
        id2label={0: "cat", 1: "dog", 2: "eel"},
        label2id={"cat": 0, "dog": 1, "eel": 2},
    )
    torch.manual_seed(0)
    return ViTForImageClassification(config)


@pytest.fixture(scope="session")
def whole(tiny_vit, tmp_path_factory) -> dict[str, bytes]:
    return saved(tiny_vit, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="session")
def official() -> bytes:
    """A tiny ViT under the names of the official .npz files: width 6, 2 heads, 3 x 3 patches of 5 x 5."""
    random = np.random.default_rng(0)
    shapes = {
        "embedding/kernel": (5, 5, 3, 6),
        "embedding/bias": (6,),
        "cls": (1, 1, 6),
        "Transformer/posembed_input/pos_embedding": (1, 10, 6),
        "Transformer/encoder_norm/scale": (6,),
        "Transformer/encoder_norm/bias": (6,),
        "head/kernel": (6, 3),
        "head/bias": (3,),
    }
    block = "Transformer/encoderblock_0/"
    for norm in ("LayerNorm_0", "LayerNorm_2"):
        shapes |= {f"{block}{norm}/scale": (6,), f"{block}{norm}/bias": (6,)}
    attention = f"{block}MultiHeadDotProductAttention_1/"
    for part in ("query", "key", "value"):
        shapes |= {f"{attention}{part}/kernel": (6, 2, 3), f"{attention}{part}/bias": (2, 3)}
    shapes |= {f"{attention}out/kernel": (2, 3, 6), f"{attention}out/bias": (6,)}
    mlp = f"{block}MlpBlock_3/"
    shapes |= {f"{mlp}Dense_0/kernel": (6, 11), f"{mlp}Dense_0/bias": (11,)}
    shapes |= {f"{mlp}Dense_1/kernel": (11, 6), f"{mlp}Dense_1/bias": (6,)}
    file = io.BytesIO()
    np.savez(file, **{name: random.normal(size=shape).astype("f") for name, shape in shapes.items()})
    return file.getvalue()


@pytest.fixture
def stand_in(whole, official, monkeypatch):
    monkeypatch.setattr(download, "RETRY", Retry(total=2, backoff_factor=0))
    monkeypatch.setattr(module, "get_token", lambda: None)
    stand_in = StandIn(hub={"google/vit-tiny": whole}, bucket={NPZ: official, LABELS: b"cat\ndog\neel\n"})
    with serve(stand_in) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield stand_in
        server.shutdown()
        thread.join()
