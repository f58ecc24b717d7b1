"""`vit-attention predict`, `rollout` and `blocks`: files and folders, in this process or on a server."""

from __future__ import annotations

import asyncio
import json as jsonlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from service.cli.batch import Batch, Look
from service.cli.files import Picture, find_outputs, find_pictures
from service.cli.flags import setting
from service.settings import Precision

if TYPE_CHECKING:
    from service.client import AsyncClient, Png, Prediction

Images = Annotated[
    list[Path],
    typer.Argument(metavar="IMAGE", exists=True, help="Files, or folders with all pictures below them."),
]
Out = Annotated[
    Path, typer.Option("-o", "--out", help="Folder to write to; for one picture also a .png file.")
]
SkipExisting = Annotated[
    bool,
    typer.Option("--skip-existing", help="Leave out pictures whose outputs are there: goes on after a stop."),
]
ModelName = Annotated[
    str | None,
    typer.Option(
        "--model", help="A name in the store or a model folder; with --url, a model that it serves."
    ),
]
Url = Annotated[
    str | None, typer.Option("--url", help="Ask this server instead of loading a model in this process.")
]
ApiKey = Annotated[
    str | None,
    typer.Option("--api-key", envvar="VIT_ATTENTION_API_KEY", help="With --url: the key that it asks for."),
]
Device = Annotated[str | None, setting("device")]
PrecisionName = Annotated[Precision | None, setting("precision")]
ModelStore = Annotated[Path | None, setting("model_store")]
InFlight = Annotated[int, typer.Option("--in-flight", min=1, help="How many pictures are under way at once.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]


def predict(
    ctx: typer.Context,
    images: Images,
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="How many labels a picture.")] = 5,
    json: Annotated[bool, typer.Option("--json", help="Print a line of JSON a picture.")] = False,
    model: ModelName = None,
    url: Url = None,
    api_key: ApiKey = None,
    device: Device = None,
    precision: PrecisionName = None,
    model_store: ModelStore = None,
    in_flight: InFlight = 16,
    quiet: Quiet = False,
) -> None:
    """Say what is in pictures: labels and their probabilities."""
    batch = Batch.of(ctx.params)

    async def look(client: AsyncClient, picture: Picture) -> str:
        prediction = await client.predict(picture.path, top_k, model=batch.service.model)
        return _json_line(picture, prediction) if json else _table(picture, prediction)

    batch.run(find_pictures(images), look, show=_print)


def rollout(
    ctx: typer.Context,
    images: Images,
    out: Out,
    overlay: Annotated[
        Literal["none", "masked", "heatmap"],
        typer.Option(help="Also write the picture times the mask, or half and half with its colours."),
    ] = "none",
    head_fusion: Annotated[
        Literal["mean", "max", "min"], typer.Option(help="How the heads of a block become one.")
    ] = "mean",
    discard_ratio: Annotated[
        float, typer.Option(min=0, max=1, help="Share of each row's weakest attention to drop; below 1.")
    ] = 0.0,
    skip_existing: SkipExisting = False,
    model: ModelName = None,
    url: Url = None,
    api_key: ApiKey = None,
    device: Device = None,
    precision: PrecisionName = None,
    model_store: ModelStore = None,
    in_flight: InFlight = 16,
    quiet: Quiet = False,
) -> None:
    """Write what the model looked at: OUT/NAME.mask.png, and OUT/NAME.overlay.png where asked for.

    Pictures below a folder keep their place: PHOTOS/a/cat.jpg becomes OUT/a/cat.mask.png.
    """
    batch = Batch.of(ctx.params)

    async def look(client: AsyncClient, picture: Picture) -> list[Png]:
        answer = await client.rollout(
            picture.path,
            head_fusion=head_fusion,
            discard_ratio=discard_ratio,
            overlay=overlay,
            model=batch.service.model,
        )
        return [answer.mask] if answer.overlay is None else [answer.mask, answer.overlay]

    kinds = ["mask"] if overlay == "none" else ["mask", "overlay"]
    _write(batch, images, out, kinds, look, skip_existing)


def blocks(
    ctx: typer.Context,
    images: Images,
    out: Out,
    layout: Annotated[
        Literal["row", "grid"], typer.Option(help="All blocks in one row, or near-square.")
    ] = "row",
    max_side: Annotated[
        int, typer.Option(min=0, help="Longer side of a block's panel in pixels; 0: the picture's own.")
    ] = 0,
    skip_existing: SkipExisting = False,
    model: ModelName = None,
    url: Url = None,
    api_key: ApiKey = None,
    device: Device = None,
    precision: PrecisionName = None,
    model_store: ModelStore = None,
    in_flight: InFlight = 16,
    quiet: Quiet = False,
) -> None:
    """Write what each block looked at: OUT/NAME.blocks.png, a panel a block.

    Pictures below a folder keep their place: PHOTOS/a/cat.jpg becomes OUT/a/cat.blocks.png.
    """
    batch = Batch.of(ctx.params)

    async def look(client: AsyncClient, picture: Picture) -> list[Png]:
        answer = await client.blocks(
            picture.path, layout=layout, max_side=max_side, model=batch.service.model
        )
        return [answer.canvas]

    _write(batch, images, out, ["blocks"], look, skip_existing)


def _write(
    batch: Batch,
    images: Sequence[Path],
    out: Path,
    kinds: Sequence[str],
    look: Look[list[Png]],
    skip_existing: bool,
) -> None:
    """Writes what `look` returns, one file a kind, and says where."""
    pictures = find_pictures(images)
    outputs = find_outputs(out, pictures)
    wanted = [picture for picture in pictures if not (skip_existing and outputs.exist(picture, kinds))]
    written: list[list[Path]] = []

    async def look_and_save(client: AsyncClient, picture: Picture) -> list[Path]:
        paths = outputs.paths(picture, kinds)
        await asyncio.to_thread(_save, await look(client, picture), paths)
        return paths

    try:
        if wanted:
            batch.run(wanted, look_and_save, show=written.append)
    finally:
        typer.echo(_summary(written, out, there=len(pictures) - len(wanted)))


def _save(pngs: Sequence[Png], paths: Sequence[Path]) -> None:
    for png, path in zip(pngs, paths, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        png.save(path)


def _summary(written: Sequence[Sequence[Path]], out: Path, there: int) -> str:
    if len(written) == 1 and not there:
        return "\n".join(map(str, written[0]))
    already = f" ({there} already there)" if there else ""
    return f"{len(written)} {'picture' if len(written) == 1 else 'pictures'} -> {out}{already}"


def _print(text: str) -> None:
    """To stdout, above the progress bar."""
    from tqdm import tqdm

    tqdm.write(text)


def _table(picture: Picture, prediction: Prediction) -> str:
    rows = (f"{label.score:8.1%}  {label.label}" for label in prediction.labels)
    return "\n".join([str(picture.path), *rows])


def _json_line(picture: Picture, prediction: Prediction) -> str:
    return jsonlib.dumps({"file": str(picture.path), **asdict(prediction)}, ensure_ascii=False)
