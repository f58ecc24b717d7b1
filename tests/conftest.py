"""What many tests share: the test data and the shapes in signatures, which only tests enforce."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from jaxtyping import install_import_hook

if TYPE_CHECKING:
    from service.engine.runner import LoadedModel, Runner
    from service.types import Job, Outcome

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


@pytest.fixture
def gate() -> Gate:
    """Whether the device computes: a runner that waits while it is shut, and fails as it is told."""
    return Gate()


class Gate:
    """Makes a runner whose batches wait while the gate is shut. Open at first.

    entered: set by every batch that arrives at it.
    fault: asked with a batch's jobs before it is computed; what it returns is raised.
    spoil: whether the model's numbers are NaN.
    computed: the images of each batch that was computed.
    """

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()
        self.fault: Callable[[Sequence[Job]], Exception | None] = lambda jobs: None
        self.spoil = False
        self.computed: list[int] = []

    def runner(self) -> Runner:
        from service.engine.runner import Runner

        gate = self

        class Gated(Runner):
            def run(self, model: LoadedModel, jobs: Sequence[Job], started: float) -> list[Outcome]:
                gate.entered.set()
                assert gate.open.wait(60), "nobody opened the gate"
                if error := gate.fault(jobs):
                    raise error
                gate.computed.append(len(jobs))
                outcomes = super().run(model, jobs, started)
                return (
                    [replace(each, logits=each.logits * np.nan) for each in outcomes]
                    if gate.spoil
                    else outcomes
                )

        return Gated("cpu", "fp32")
