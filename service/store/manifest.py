"""model.json: everything about a stored model but its weights."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.models.spec import Architecture
from service.types import Preprocess

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class Manifest(BaseModel):
    """What a model folder's model.json states.

    format: version of this layout.
    name: the folder's name, and the model's in the API.
    labels: one a class, in class order.
    digest: of model.safetensors.
    source: where the weights came from: a file name, owner/name@revision on a hub, or a URL.
    licence: as the source states it, or None where it states none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    name: Annotated[str, Field(pattern=rf"^{NAME}$")]
    family: Literal["vit"] = "vit"
    architecture: Architecture
    preprocessing: Preprocess
    labels: list[str]
    digest: Digest
    source: str
    licence: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        arch = self.architecture
        sizes = (*arch.trained_size, arch.patch, arch.width, arch.depth, arch.heads, arch.mlp_width)
        if min(*sizes, arch.classes, arch.prefix_tokens, *self.preprocessing.input_size) < 1:
            raise ValueError("every size and count must be at least 1")
        if arch.width % arch.heads:
            raise ValueError(f"width {arch.width} is not a multiple of {arch.heads} heads")
        if len(self.labels) != arch.classes:
            raise ValueError(f"{len(self.labels)} labels for {arch.classes} classes")
        return self


def is_name(name: str) -> bool:
    """Whether a model may be called that: a letter or digit, then up to 99 letters, digits, '.', '_', '-'."""
    return re.fullmatch(NAME, name) is not None
