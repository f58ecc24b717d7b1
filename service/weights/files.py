"""Weight files and the JSON beside them, read so that every failure is a CheckpointError."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from safetensors.torch import load_file
from torch import Tensor

from service.errors import CheckpointError

Schema = TypeVar("Schema", bound=BaseModel)


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Whatever goes wrong inside is a CheckpointError that names `path`; `what` as in "a JSON file"."""
    try:
        yield
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}.") from error
    except Exception as error:  # parsers raise a dozen kinds on corrupt bytes, none of them ours
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"{path} is truncated, corrupt or not {what} ({reason}). Download it again."
        ) from error


def read_json(path: Path, schema: type[Schema]) -> Schema:
    """The JSON file's fields, checked against `schema`.

    Raises CheckpointError naming the first field that does not fit.
    """
    with reading(path, "a JSON file"):
        text = path.read_bytes()
    try:
        return schema.model_validate_json(text)
    except ValidationError as error:
        raise CheckpointError(f"{path}: {complaint(error)}.") from error


def complaint(error: ValidationError) -> str:
    """The first field that does not fit, with its value and what was expected of it."""
    first = error.errors(include_url=False)[0]
    field = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        return f"{field} is missing"
    return f"{field} is {first['input']!r}. {first['msg']}" if field else first["msg"]


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a .safetensors file, by its name there; memory-mapped, no code is run."""
    with reading(path, "a safetensors file"):
        tensors: dict[str, Tensor] = load_file(path)
        return tensors
