"""What every importer hands over: one checkpoint in the model's one layout."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from service.models.spec import Architecture
from service.types import Preprocess


@dataclass(frozen=True)
class Checkpoint:
    """A foreign checkpoint, mapped.

    labels: one name a class in class order, or None where the format carries none.
    state: tensors under the names that models/vit.py lists, float32.
    """

    architecture: Architecture
    preprocess: Preprocess
    labels: list[str] | None
    state: dict[str, Tensor]
