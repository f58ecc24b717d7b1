"""What many tests share: the test data and the shapes in signatures, which only tests enforce."""

import os
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

ROOMS_OF_TENSORS = ["datasets", "explain", "imaging", "models", "weights"]

install_import_hook([f"service.{room}" for room in ROOMS_OF_TENSORS], "beartype.beartype")


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Real weights, photographs and odd images, kept outside the project."""
    folder = os.environ.get("VIT_ATTENTION_TEST_DATA")
    if not folder:
        pytest.skip("VIT_ATTENTION_TEST_DATA does not name the folder of test data")
    return Path(folder)


@pytest.fixture(scope="session")
def golden(test_data: Path) -> Path:
    """Reference outputs, beside the test data."""
    folder = test_data.parent / "golden"
    if not folder.is_dir():
        pytest.skip(f"{folder.name}/ is not beside the folder of test data")
    return folder


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store with two random models: `tiny` (35 x 21 pixels, 5 classes) and `crop` (7 classes)."""
    from service.models.spec import Architecture
    from service.models.vit import VisionTransformer
    from service.store.registry import Registry
    from service.types import Preprocess
    from service.weights.checkpoint import Checkpoint

    half = (0.5, 0.5, 0.5)
    shapes = {
        "tiny": (
            Architecture((35, 21), 7, 33, 3, 3, 41, 5),
            Preprocess((35, 21), (35, 21), "bilinear", half, half),
        ),
        "crop": (
            Architecture((22, 33), 11, 26, 2, 2, 31, 7),
            Preprocess((22, 33), 39, "bicubic", half, half),
        ),
    }
    registry = Registry(tmp_path_factory.mktemp("store"))
    for seed, (name, (architecture, preprocess)) in enumerate(shapes.items()):
        torch.manual_seed(seed)
        model = VisionTransformer(architecture)
        state = {key: torch.randn_like(value) * 0.3 for key, value in model.state_dict().items()}
        labels = [f"{name} {index}" for index in range(architecture.classes)]
        registry.add(name, Checkpoint(architecture, preprocess, labels, state), "random", None)
    return registry.root
