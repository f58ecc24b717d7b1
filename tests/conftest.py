"""What many tests share: the test data and the shapes in signatures, which only tests enforce."""

import os
from pathlib import Path

import pytest
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
