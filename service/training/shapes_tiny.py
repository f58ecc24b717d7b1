"""Train and measure `shapes-tiny`, the model that comes with the project.

    python -m service.training.shapes_tiny train --steps 2000 --out runs/shapes-tiny
    python -m service.training.shapes_tiny train --steps 2000 --out runs/shapes-tiny --resume
    python -m service.training.shapes_tiny evaluate runs/shapes-tiny/shapes-tiny

A ViT from scratch on two CPU cores in about twenty minutes, from the pictures of `datasets.shapes`, which
are drawn as they are needed and never twice. What makes that possible: every patch has a target beside
the picture's (token labelling: a second head, which is thrown away, tells each patch's class or ground),
and most pictures are seen cheaply: first close up at half the side, then whole with half of their
patches left out, and only at the end whole.

Everything about step k follows from (recipe, k), so a run that is resumed ends in the same weights.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
import typer
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from service.datasets import shapes
from service.models.spec import Architecture
from service.models.vit import VisionTransformer
from service.store.registry import Registry, StoredModel
from service.training.measure import HELD_OUT_SEED, measure
from service.training.patches import patch_shares, squashed_picture, to_pixels
from service.types import Capture, Preprocess, Size
from service.weights.checkpoint import Checkpoint

NAME = "shapes-tiny"
ARCHITECTURE = Architecture((224, 224), 16, 128, 12, 4, 512, len(shapes.CLASSES))
PREPROCESS = Preprocess((224, 224), (224, 224), "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
STRETCH = 0.3  # training pictures are drawn up to e ** 0.6 = 1.8 times as wide as tall, or as tall as wide
PAIR_EVERY = 4  # one training picture in so many holds two objects

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__, rich_markup_mode=None)


@dataclass(frozen=True)
class Recipe:
    """What a training run follows from.

    rate: the highest learning rate, reached after `warmup` steps; a cosine takes it to 0.
    averaging: how much of the averaged weights a step keeps.
    """

    steps: int
    batch: int = 32
    seed: int = 0
    rate: float = 1e-3
    warmup: int = 200
    weight_decay: float = 0.05
    averaging: float = 0.998


@dataclass(frozen=True)
class Stage:
    """How pictures are seen for a part of the run.

    until: the part's end, as a share of all steps.
    zoom: pictures have 1 / zoom of the side, with things as large as ever: close-ups.
    keep: the share of patches that go through the blocks.
    """

    until: float
    zoom: int
    keep: float


STAGES = (Stage(0.5, 2, 1.0), Stage(0.92, 1, 0.5), Stage(1.0, 1, 1.0))


class Batch(NamedTuple):
    """What a step learns from.

    corner: where the picture's patch grid lies in the model's: row, column.
    keep: the patches that go through the blocks.
    shares: how much of each kept patch is of each class, and of ground (last); sums to 1.
    labels: how much of the picture's object area is of each class; sums to 1.
    """

    images: UInt8[Tensor, "batch height width 3"]
    corner: Int64[Tensor, " 2"]
    keep: Int64[Tensor, " kept"]
    shares: Float[Tensor, "batch kept class_or_ground"]
    labels: Float[Tensor, "batch classes"]


class Batches(Dataset[Batch]):
    """The batch of every step, drawn when it is asked for."""

    def __init__(self, recipe: Recipe, arch: Architecture) -> None:
        if recipe.seed == HELD_OUT_SEED:
            raise ValueError(f"seed {HELD_OUT_SEED} names the held-out pictures")
        self.recipe, self.arch = recipe, arch

    def __getitem__(self, step: int) -> Batch:
        """The batch of this step."""
        stage = stage_at(step, self.recipe)
        height, width = (side // stage.zoom for side in self.arch.trained_size)
        rows, columns = height // self.arch.patch, width // self.arch.patch
        rng = np.random.default_rng([self.recipe.seed, step, 1])
        free = self.arch.grid[0] - rows, self.arch.grid[1] - columns
        corner = [int(rng.integers(room + 1)) for room in free]
        keep = np.sort(rng.permutation(rows * columns)[: round(stage.keep * rows * columns)])
        first = step * self.recipe.batch
        pictures = [
            training_picture(self.recipe.seed, index, (height, width), stage.zoom)
            for index in range(first, first + self.recipe.batch)
        ]
        shares = np.stack([patch_shares(picture, self.arch.patch, self.arch.classes) for picture in pictures])
        areas = shares[..., :-1].sum(1) + 1e-9
        return Batch(
            torch.from_numpy(np.stack([picture.image for picture in pictures])),
            torch.tensor(corner),
            torch.from_numpy(keep),
            torch.from_numpy(shares[:, keep]),
            torch.from_numpy(areas / areas.sum(1, keepdims=True)),
        )


def training_picture(seed: int, index: int, size: Size, zoom: int) -> shapes.Picture:
    """Training picture number `index`: wide, square or tall, squashed to `size`; some hold two objects."""
    stretch = math.exp(np.random.default_rng([seed, index, 2]).uniform(-STRETCH, STRETCH))
    return squashed_picture(seed, index, size, 2 if index % PAIR_EVERY == 0 else 1, zoom, stretch)


def stage_at(step: int, recipe: Recipe) -> Stage:
    """The stage that a step belongs to."""
    return next(stage for stage in STAGES if step < stage.until * recipe.steps)


# ---- the model in training


class Learner(nn.Module):
    """The model and the head that tells each patch's class: what a step updates."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.model = VisionTransformer(arch)
        self.patch_head = nn.Linear(arch.width, arch.classes + 1)

    def forward(
        self,
        pixels: Float[Tensor, "batch 3 height width"],
        corner: tuple[int, int],
        keep: Int64[Tensor, " kept"],
    ) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch kept class_or_ground"]]:
        """Logits of the pictures and of their kept patches."""
        model, (rows, columns) = self.model, self.model.grid(pixels)
        positions = model.positions[corner[0] : corner[0] + rows, corner[1] : corner[1] + columns]
        patches = model.patch_embed(pixels).flatten(2).transpose(1, 2) + positions.flatten(0, 1)
        prefix = model.prefix.expand(len(pixels), -1, -1)
        tokens, _ = model.encode(torch.cat([prefix, patches[:, keep]], dim=1), Capture.NONE)
        return model.classify(tokens), self.patch_head(tokens[:, model.arch.prefix_tokens :])


def initialise(learner: Learner, seed: int) -> None:
    """Start values: Glorot for matrices, smaller where blocks add to the tokens; waves for positions."""
    torch.manual_seed(seed)
    arch = learner.model.arch
    for name, parameter in learner.named_parameters():
        if name.endswith("patch_embed.weight"):
            nn.init.xavier_uniform_(parameter.data.flatten(1))
        elif name.endswith(("proj.weight", "fc2.weight")):
            nn.init.xavier_uniform_(parameter, gain=(2 * arch.depth) ** -0.5)
        elif name.endswith("qkv.weight"):
            for part in parameter.data.chunk(3):
                nn.init.xavier_uniform_(part)
        elif name.endswith(("head.weight", "prefix")):
            nn.init.normal_(parameter, std=0.02)
        elif parameter.ndim == 2:
            nn.init.xavier_uniform_(parameter)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    learner.model.positions.data.copy_(0.3 * waves(arch))


def waves(arch: Architecture) -> Float[Tensor, "rows columns width"]:
    """Sines and cosines of the row and of the column, a quarter of the width each."""
    frequencies = 100.0 ** -(torch.arange(arch.width // 4) / (arch.width // 4))
    rows, columns = (torch.arange(count)[:, None] * frequencies for count in arch.grid)
    row_part = torch.cat([rows.sin(), rows.cos()], 1)[:, None].expand(-1, arch.grid[1], -1)
    column_part = torch.cat([columns.sin(), columns.cos()], 1)[None].expand(arch.grid[0], -1, -1)
    return torch.cat([row_part, column_part], dim=-1)


def optimiser_of(learner: Learner, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW; matrices decay, everything else does not."""
    matrices = [p for n, p in learner.named_parameters() if p.ndim >= 2 and n.endswith("weight")]
    rest = [p for n, p in learner.named_parameters() if not (p.ndim >= 2 and n.endswith("weight"))]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.98), fused=True)


def rate_at(step: int, recipe: Recipe) -> float:
    """The learning rate of a step: up in a line, down in a cosine to 0."""
    if step < recipe.warmup:
        return recipe.rate * (step + 1) / recipe.warmup
    progress = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.rate * 0.5 * (1 + math.cos(math.pi * progress))


class Losses(NamedTuple):
    """The losses of a step: of the pictures and of their patches."""

    picture: float
    patch: float


class Trainer:
    """A run: the learner, its averaged weights and the optimiser, a step at a time."""

    def __init__(self, recipe: Recipe, arch: Architecture) -> None:
        self.recipe, self.arch = recipe, arch
        self.learner = Learner(arch)
        initialise(self.learner, recipe.seed)
        self.averaged = Learner(arch)
        self.averaged.load_state_dict(self.learner.state_dict())
        self.optimiser = optimiser_of(self.learner, recipe)
        self.step = 0

    def learn(self, batch: Batch) -> Losses:
        """One step on one batch."""
        progress = self.step / self.recipe.steps
        for group in self.optimiser.param_groups:
            group["lr"] = rate_at(self.step, self.recipe)
        row, column = batch.corner.tolist()
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):  # the fused one is slower
            logits, patch_logits = self.learner(to_pixels(batch.images), (row, column), batch.keep)
        picture = F.cross_entropy(logits.float(), batch.labels)
        patch = F.cross_entropy(patch_logits.float().flatten(0, 1), batch.shares.flatten(0, 1))
        self.optimiser.zero_grad()
        (picture + (2 - progress) * patch).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.learner.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        self._average()
        return Losses(picture.item(), patch.item())

    def _average(self) -> None:
        keep = min(self.recipe.averaging, self.step / (self.step + 10))
        torch._foreach_lerp_(
            [p.data for p in self.averaged.parameters()],
            [p.data for p in self.learner.parameters()],
            1 - keep,
        )

    def save(self, path: Path) -> None:
        """Write a checkpoint, atomically."""
        state = {
            "recipe": asdict(self.recipe),
            "step": self.step,
            "learner": self.learner.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        part = path.with_suffix(".part")
        torch.save(state, part)
        os.replace(part, path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint of the same recipe; nothing is unpickled but tensors and numbers."""
        state = torch.load(path, weights_only=True)
        if state["recipe"] != asdict(self.recipe):
            raise ValueError(f"{path} is of another run: {state['recipe']}")
        self.learner.load_state_dict(state["learner"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step = state["step"]


def batches_from(step: int, last: int, trainer: Trainer, workers: int) -> Iterator[Batch]:
    """The batches of steps `step` to before `last`, drawn ahead in worker processes (0: in this one)."""
    loader: DataLoader[Batch] = DataLoader(
        Batches(trainer.recipe, trainer.arch),
        batch_size=None,
        sampler=range(step, last),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_one_thread,
    )
    return iter(loader)


def _one_thread(worker: int) -> None:
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


# ---- commands


@app.command()
def train(
    steps: Annotated[int, typer.Option(min=1, help="Steps of the whole run.")] = 2000,
    batch: Annotated[int, typer.Option(min=1, help="Pictures a step.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Names the start values and the pictures.")] = 0,
    rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 1e-3,
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint, the log and the model.")] = Path(
        "runs/shapes-tiny"
    ),
    resume: Annotated[bool, typer.Option(help="Go on from the folder's checkpoint.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads for the model.")] = os.cpu_count() or 1,
    workers: Annotated[int, typer.Option(min=0, help="Processes that draw; 0: none besides.")] = 1,
    save_every: Annotated[int, typer.Option(min=1, help="Steps from checkpoint to checkpoint.")] = 250,
) -> None:
    """Train, leaving checkpoint.pt, log.jsonl and, at the end, the model folder shapes-tiny in a folder."""
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(Recipe(steps, batch, seed, rate), ARCHITECTURE)
    if resume:
        trainer.load(out / "checkpoint.pt")
    run(trainer, out, workers, save_every)
    publish(trainer.averaged.model, out)


def run(
    trainer: Trainer, out: Path, workers: int = 0, save_every: int = 250, until: int | None = None
) -> None:
    """Take the steps that are left (or those before `until`), with a checkpoint every so often."""
    out.mkdir(parents=True, exist_ok=True)
    last = trainer.recipe.steps if until is None else until
    began, losses = time.monotonic(), Losses(math.nan, math.nan)
    with tqdm(total=last, initial=trainer.step, unit="step", mininterval=10) as bar:
        for batch in batches_from(trainer.step, last, trainer, workers):
            latest = trainer.learn(batch)
            losses = latest if math.isnan(losses.picture) else _blend(losses, latest)
            bar.update()
            bar.set_postfix(picture=f"{losses.picture:.3f}", patch=f"{losses.patch:.3f}", refresh=False)
            if trainer.step % save_every == 0 or trainer.step == last:
                trainer.save(out / "checkpoint.pt")
                seconds = round(time.monotonic() - began, 1)
                entry = {"step": trainer.step, "seconds": seconds, **losses._asdict()}
                with (out / "log.jsonl").open("a") as log:
                    log.write(json.dumps(entry) + "\n")


def _blend(losses: Losses, latest: Losses) -> Losses:
    return Losses(*(0.98 * old + 0.02 * new for old, new in zip(losses, latest, strict=True)))


def publish(model: VisionTransformer, store: Path) -> StoredModel:
    """Write the model, at half precision, as `shapes-tiny` into a model store."""
    checkpoint = Checkpoint(model.arch, PREPROCESS, list(shapes.CLASSES), model.state_dict())
    source = "trained by service.training.shapes_tiny"
    registry = Registry(store)
    return registry.add(NAME, checkpoint, source, "Apache-2.0", replace=True, dtype=torch.float16)


def load(folder: Path) -> VisionTransformer:
    """The model of a model folder, at float32, ready to be asked."""
    registry = Registry(folder.parent)
    _, model = registry.load(registry.open_path(folder))
    assert isinstance(model, VisionTransformer)
    return model.eval()


@app.command()
def evaluate(
    folder: Annotated[Path, typer.Argument(help="A model folder of shapes-tiny.")],
    pictures: Annotated[int, typer.Option(min=1, help="How many fresh pictures.")] = 2000,
    objects: Annotated[int, typer.Option(min=1, max=2, help="Objects a picture.")] = 1,
    aspect: Annotated[float, typer.Option(help="How many times as wide as tall pictures are.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Names the pictures.")] = HELD_OUT_SEED,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads for the model.")] = os.cpu_count() or 1,
) -> None:
    """Print accuracy, and how often rollout's peak lies on an object, as JSON."""
    torch.set_num_threads(threads)
    typer.echo(json.dumps(measure(load(folder), pictures, objects, aspect, seed), indent=2))


if __name__ == "__main__":
    app()
