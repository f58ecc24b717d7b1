"""The model store on disk: a folder a model, each with model.json and model.safetensors.

Readers never lock. Writers hold one lock for as long as they write, so every hidden folder that the
holder finds was left by a process that died:

    .new-NAME   being written; renamed to NAME once it is complete and on the disk
    .old-NAME   moved aside by a replacement; it stands in for NAME until the new one has that name
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from service.errors import CheckpointError, StoreError
from service.models.build import build
from service.store.manifest import Manifest, is_name
from service.weights.assign import assign
from service.weights.checkpoint import Checkpoint

FAMILY = "vit"
MANIFEST = "model.json"
WEIGHTS = "model.safetensors"
REMEDY = "Import or pull it again with --force."
NAME_RULE = "1 to 100 letters, digits, '.', '_' or '-', the first a letter or digit"


@dataclass(frozen=True)
class StoredModel:
    """A model folder whose model.json was read."""

    manifest: Manifest
    folder: Path

    @property
    def weights(self) -> Path:
        """The safetensors file."""
        return self.folder / WEIGHTS


@dataclass(frozen=True)
class Listing:
    """What a store holds.

    models: by name.
    broken: folder name -> why it can't be read.
    """

    models: list[StoredModel]
    broken: dict[str, str]


class Registry:
    """The models under one folder, which need not exist until something is added."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        """The names of the models that can be opened."""
        return [stored.manifest.name for stored in self.manifests().models]

    def manifests(self) -> Listing:
        """Every model and, apart, every folder that should be one and is not."""
        models, broken = [], {}
        for name in self._folder_names():
            try:
                models.append(self.open(name))
            except StoreError as error:
                broken[name] = error.detail
        return Listing(models, broken)

    def open(self, name: str) -> StoredModel:
        """The model of that name."""
        require_name(name)
        stored = self.open_path(self._folder(name))
        if stored.manifest.name != name:
            raise StoreError(
                f"The folder {name} holds a model.json for {stored.manifest.name!r}: "
                "give folder and model.json the same name."
            )
        return stored

    def open_path(self, folder: Path) -> StoredModel:
        """The model in any folder: for the operator, never for a name that came in a request."""
        try:
            manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            raise StoreError(self._unknown(folder)) from None
        except OSError as error:
            raise StoreError(f"{folder.name}/{MANIFEST} can't be read: {error.strerror}.") from error
        except ValidationError as error:
            raise StoreError(f"{folder.name}/{MANIFEST} is not valid: {_reason(error)}. {REMEDY}") from error
        if not (folder / WEIGHTS).is_file():
            raise StoreError(f"Model {manifest.name} has no {WEIGHTS}. {REMEDY}")
        return StoredModel(manifest, folder)

    def load(self, stored: StoredModel) -> tuple[Manifest, nn.Module]:
        """The model with its weights in float32, once they are what model.json promises."""
        manifest = stored.manifest
        try:
            if sha256(stored.weights) != manifest.digest:
                raise StoreError(
                    f"Model {manifest.name}: {WEIGHTS} does not match the digest in {MANIFEST}; "
                    f"it is damaged or was changed. {REMEDY}"
                )
            model = build(manifest.family, manifest.architecture)
            assign(model, {key: tensor.float() for key, tensor in load_file(stored.weights).items()})
            return manifest, model
        except OSError as error:
            raise StoreError(f"Model {manifest.name} can't be read: {error.strerror}.") from error
        except (SafetensorError, CheckpointError) as error:
            reason = str(error).rstrip(".")
            raise StoreError(f"Model {manifest.name} can't be loaded: {reason}. {REMEDY}") from error

    def add(
        self,
        name: str,
        checkpoint: Checkpoint,
        source: str,
        licence: str | None,
        *,
        replace: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> StoredModel:
        """Store a checkpoint under a name: all of it or, whatever happens meanwhile, nothing.

        dtype: what the weights are stored in; they are loaded in float32.
        Classes without labels are called by their number.
        """
        self.require_free(name, replace=replace)
        assign(build(FAMILY, checkpoint.architecture), checkpoint.state)  # what doesn't fit is not stored
        try:
            with self._writing():
                self.require_free(name, replace=replace)
                new = self.root / f".new-{name}"
                new.mkdir()
                _write_weights(new / WEIGHTS, checkpoint.state, dtype)
                manifest = _manifest(name, checkpoint, sha256(new / WEIGHTS), source, licence)
                _write_text(new / MANIFEST, manifest.model_dump_json(indent=2))
                _sync(new)
                self._publish(new, name)
        except (OSError, SafetensorError) as error:
            raise StoreError(f"Model {name} can't be written to {self.root}: {error}.") from error
        return StoredModel(manifest, self.root / name)

    def require_free(self, name: str, *, replace: bool) -> None:
        """Raise unless a model of this name may be added."""
        require_name(name)
        folder = self._folder(name)
        if folder.is_symlink() or folder.is_file():
            raise StoreError(f"{folder} is a link or a file, which is left alone: choose another name.")
        if folder.exists() and not replace:
            raise StoreError(
                f"Model {name} is in the store already: replace it with --force, "
                "or choose another name with --name."
            )

    def _folder_names(self) -> list[str]:
        try:
            entries = [entry.name for entry in self.root.iterdir() if entry.is_dir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreError(f"The model store {self.root} can't be read: {error.strerror}.") from error
        stand_ins = {name.removeprefix(".old-") for name in entries if name.startswith(".old-")}
        return sorted(stand_ins | {name for name in entries if not name.startswith(".")})

    def _folder(self, name: str) -> Path:
        folder, aside = self.root / name, self._aside(name)
        return aside if not folder.exists() and aside.exists() else folder

    def _aside(self, name: str) -> Path:
        return self.root / f".old-{name}"

    def _unknown(self, folder: Path) -> str:
        if folder.is_dir():
            return f"{folder.name} has no {MANIFEST}. {REMEDY}"
        held = ", ".join(name for name in self._folder_names() if is_name(name)) or "no model"
        return (
            f"There is no model {folder.name}; the store holds {held}. "
            "Add one with `vit-attention models pull NAME` or `vit-attention models import PATH`."
        )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Alone among writers, in a store that holds no leftovers of dead ones."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel lets go when the process dies
            self._recover()
            try:
                yield
            finally:
                self._recover()

    def _recover(self) -> None:
        for unfinished in self.root.glob(".new-*"):
            shutil.rmtree(unfinished)
        for aside in self.root.glob(".old-*"):
            name = aside.name.removeprefix(".old-")
            if (self.root / name).exists():
                # renamed first, so that a half-removed folder never stands in for anything
                shutil.rmtree(aside.rename(self.root / f".new-{name}"))
            else:
                aside.rename(self.root / name)

    def _publish(self, new: Path, name: str) -> None:
        folder = self.root / name
        if folder.exists():
            folder.rename(self._aside(name))
        new.rename(folder)
        _sync(self.root)


def require_name(name: str) -> None:
    """Raise unless it is a model name; so a name never leads out of the store."""
    if not is_name(name):
        raise StoreError(f"{name[:100]!r} is not a model name: expected {NAME_RULE}.")


def sha256(path: Path) -> str:
    """The digest of a file, as model.json writes it."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _manifest(name: str, checkpoint: Checkpoint, digest: str, source: str, licence: str | None) -> Manifest:
    labels = checkpoint.labels
    if labels is None:
        labels = [str(index) for index in range(checkpoint.architecture.classes)]
    try:
        return Manifest(
            name=name,
            architecture=checkpoint.architecture,
            preprocessing=checkpoint.preprocess,
            labels=labels,
            digest=digest,
            source=source,
            licence=licence,
        )
    except ValidationError as error:
        raise StoreError(f"Model {name} can't be stored: {_reason(error)}.") from error


def _write_weights(path: Path, state: dict[str, Tensor], dtype: torch.dtype) -> None:
    # safetensors takes no two tensors that share memory: each gets its own
    own = {
        key: tensor.detach().to("cpu", dtype, copy=True, memory_format=torch.contiguous_format)
        for key, tensor in state.items()
    }
    save_file(own, path, metadata={"format": "pt"})
    path.chmod(path.parent.stat().st_mode & 0o666)  # it makes files for their owner alone
    _sync(path)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text + "\n", encoding="utf-8")
    _sync(path)


def _sync(path: Path) -> None:
    """Have a file's bytes or a folder's entries on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message
