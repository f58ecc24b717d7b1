"""vit-attention models: what the store holds, and how something gets into it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.settings import DEFAULT_MODEL, Settings

if TYPE_CHECKING:
    from service.models.spec import Architecture
    from service.store.registry import StoredModel

models_app = typer.Typer(no_args_is_help=True, help="List, pull and import models.")

Name = Annotated[str | None, typer.Option("--name", help="Name in the store, instead of the source's own.")]
Force = Annotated[bool, typer.Option("--force", help="Replace a model of the same name.")]
Labels = Annotated[
    Path | None,
    typer.Option("--labels", help="Text file with one label a line, in class order.", dir_okay=False),
]


@models_app.command("list")
def list_models() -> None:
    """Show the models in the store."""
    from service.store.registry import Registry

    store = Settings().model_store
    listing = Registry(store).manifests()
    if listing.models:
        typer.echo(_table([COLUMNS, *(_row(stored) for stored in listing.models)]))
    elif not listing.broken:
        typer.echo(f"No models in {store}. Add one with `vit-attention models pull NAME`.")
    for name, reason in listing.broken.items():
        typer.echo(f"broken: {name}: {reason}", err=True)


@models_app.command()
def pull(
    name: Annotated[
        str,
        typer.Argument(help="owner/name on the Hugging Face hub, or an official name such as ViT-B_16-224."),
    ],
    store_name: Name = None,
    labels: Labels = None,
    force: Force = False,
    bucket_url: Annotated[
        str | None, typer.Option(help="Mirror of storage.googleapis.com for the official names.")
    ] = None,
) -> None:
    """Download a model into the store; an interrupted download goes on where it stopped.

    HF_ENDPOINT names another hub, HF_TOKEN opens private and gated models.
    """
    from service.store.pull import pull as pull_model
    from service.store.registry import Registry
    from service.weights.detect import read_labels

    stored = pull_model(
        name,
        Registry(Settings().model_store),
        store_name=store_name,
        labels=read_labels(labels) if labels else None,
        replace=force,
        bucket_url=bucket_url,
    )
    _announce(stored)


@models_app.command("import")
def import_model(
    path: Annotated[
        Path,
        typer.Argument(help="A .safetensors, .npz or .pth file, or a folder as a hub has it.", exists=True),
    ],
    labels: Labels = None,
    store_name: Name = None,
    force: Force = False,
) -> None:
    """Add a checkpoint from this machine to the store."""
    from service.store.registry import Registry
    from service.weights.detect import read_checkpoint, read_labels

    registry = Registry(Settings().model_store)
    name = store_name or (path.resolve().name if path.is_dir() else path.stem)
    registry.require_free(name, replace=force)
    checkpoint = read_checkpoint(path, read_labels(labels) if labels else None)
    _announce(registry.add(name, checkpoint, path.resolve().name, None, replace=force))


COLUMNS = ("name", "family", "classes", "input", "size", "digest", "source", "licence")


def _row(stored: StoredModel) -> tuple[str, ...]:
    manifest = stored.manifest
    height, width = manifest.preprocessing.input_size
    return (
        f"{manifest.name} (bundled)" if manifest.name == DEFAULT_MODEL else manifest.name,
        manifest.family,
        str(manifest.architecture.classes),
        f"{height} x {width}",
        f"{stored.weights.stat().st_size / 1e6:.1f} MB",
        manifest.digest.removeprefix("sha256:")[:12],
        manifest.source,
        manifest.licence or "not stated",
    )


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _announce(stored: StoredModel) -> None:
    """Say what is in the store now, and what to do with it."""
    manifest = stored.manifest
    labels = f"{manifest.labels[0]} ... {manifest.labels[-1]}"
    if manifest.labels[0] == "0":
        labels += " (numbers: to name the classes, give --labels FILE and --force)"
    typer.echo(
        f"{manifest.name}: {_words(manifest.architecture)}, {manifest.architecture.classes} classes\n"
        f"  labels  {labels}\n"
        f"  source  {manifest.source}\n"
        f"  digest  {manifest.digest}\n"
        f"  folder  {stored.folder}\n"
        f"Serve it with: vit-attention serve --model {manifest.name}"
    )


def _words(arch: Architecture) -> str:
    """An architecture's name, such as "ViT-Ti/16 at 224 x 224"."""
    from service.models.spec import VARIANTS

    shape = (arch.width, arch.depth, arch.heads, arch.mlp_width)
    known = [f"-{name}" for name, variant in VARIANTS.items() if variant == shape]
    details = "" if known else f" (width {arch.width}, {arch.depth} blocks, {arch.heads} heads)"
    distilled = ", distilled," if arch.distilled else ""
    height, width = arch.trained_size
    return f"ViT{''.join(known)}/{arch.patch}{details}{distilled} at {height} x {width}"
