"""`vit-attention benchmark`: how many answers a second a deployment gives, and how fast under which load."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer

from service.cli.files import find_pictures
from service.cli.session import Remote

if TYPE_CHECKING:
    import httpx

    from service.client import ModelInfo
    from service.load.answers import Question, Run
    from service.load.curve import Point


class Route(StrEnum):
    """What can be asked."""

    PREDICT = "predict"
    ROLLOUT = "rollout"
    BLOCKS = "blocks"

    @property
    def path(self) -> str:
        """Where it is asked."""
        return "/predict" if self is Route.PREDICT else f"/attention/{self}"


WIDTH, HEIGHT, PICTURES = 640, 480, 8
CLOSED = ["route", "in flight", "answers/s", "p50 ms", "p95 ms", "p99 ms", "KiB an answer", "failed"]
OPEN = ["load", "requests/s", "goodput/s", "p50 ms", "p95 ms", "p99 ms", "failed"]


def benchmark(
    url: Annotated[str, typer.Option("--url", help="The server.")] = "http://127.0.0.1:8000",
    api_key: Annotated[
        str | None,
        typer.Option("--api-key", envvar="VIT_ATTENTION_API_KEY", help="The key that it asks for."),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="A model that it serves.")] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option("--images", exists=True, help="Files or folders to send instead of drawn photographs."),
    ] = None,
    route: Annotated[
        list[Route] | None, typer.Option("--route", help="What to ask; may be repeated. [default: all three]")
    ] = None,
    in_flight: Annotated[
        list[int] | None,
        typer.Option("--in-flight", min=1, help="Requests at once; may be repeated. [default: 1, 8, 32]"),
    ] = None,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.1, help="How long each line is measured.")
    ] = 10,
    objective_ms: Annotated[
        float, typer.Option("--objective-ms", min=1, help="An answer after that is no goodput.")
    ] = 1000,
    curve: Annotated[bool, typer.Option(help="Also measure latency against load, in an open loop.")] = True,
) -> None:
    """Measure a server: answers a second with so many requests under way, then latency against load.

    The requests are real work and are not throttled: don't point this at a server that others need.
    """
    load = Load(url.rstrip("/"), api_key, model, _bodies(images), seconds)
    asyncio.run(_measure(load, route, in_flight or [1, 8, 32], objective_ms / 1000, curve))


@dataclass(frozen=True)
class Load:
    """What is sent where.

    bodies: image files. seconds: how long each line of a table is measured.
    """

    url: str
    api_key: str | None
    model: str | None
    bodies: Sequence[bytes]
    seconds: float

    def questions(self, route: Route) -> Iterator[Question]:
        """Requests of one route without end, the images in turn."""
        from service.load.answers import Question

        headers = {"Content-Type": "application/octet-stream"}
        if self.api_key:
            headers["X-API-Key"] = self.api_key
        url = self.url + route.path + (f"?model={quote(self.model)}" if self.model else "")
        return itertools.cycle([Question(url, body, headers) for body in self.bodies])

    async def closed(self, client: httpx.AsyncClient, route: Route, in_flight: int) -> Run:
        """A run with so many requests under way, after one that warms up."""
        from service.load.loops import closed_loop, for_seconds

        questions = self.questions(route)
        await closed_loop(client, itertools.islice(questions, in_flight), in_flight)
        return await closed_loop(client, for_seconds(questions, self.seconds), in_flight)


async def _measure(
    load: Load, routes: list[Route] | None, in_flight: list[int], objective_s: float, curve: bool
) -> None:
    from service.load.loops import load_client

    model = await _model(load)
    routes = routes or [route for route in Route if route is Route.PREDICT or route in model.explains]
    size = sum(map(len, load.bodies)) / len(load.bodies) / 1024
    typer.echo(f"{load.url}: {model.name} ({model.device}, {model.precision}); {size:.0f} KiB an image\n")
    async with load_client() as client:
        await _closed(load, client, routes, in_flight)
        if curve:
            await _open(load, client, Route.ROLLOUT if Route.ROLLOUT in routes else routes[-1], objective_s)


async def _model(load: Load) -> ModelInfo:
    """The model that will answer; raises what every request would be refused for."""
    from service.errors import UnknownModel

    async with Remote(load.url, load.api_key, load.model).client() as client:
        models = await client.models()
    for model in models:
        if model.name == load.model or (load.model is None and model.default):
            return model
    raise UnknownModel(
        f"{load.url} serves no model {load.model!r}; it has {', '.join(m.name for m in models)}."
    )


async def _closed(load: Load, client: httpx.AsyncClient, routes: list[Route], in_flight: list[int]) -> None:
    from service.load import markdown

    typer.echo(markdown.head(CLOSED))
    for route, count in itertools.product(routes, in_flight):
        run = await load.closed(client, route, count)
        cells = [route.path, str(count), f"{run.rate:.1f}", *_percentiles(run)]
        typer.echo(markdown.row([*cells, f"{run.mean_size / 1024:.1f}", str(run.failed)]))


async def _open(load: Load, client: httpx.AsyncClient, route: Route, objective_s: float) -> None:
    from service.errors import Unavailable
    from service.load import markdown
    from service.load.curve import LOADS, curve, knee

    capacity = (await load.closed(client, route, 32)).rate
    if not capacity:
        raise Unavailable(f"{load.url} answered none of 32 requests at once; see its log.")
    typer.echo(
        f"\n{route.path} in an open loop; capacity {capacity:.1f}/s, goodput: within {objective_s:g} s\n"
    )
    typer.echo(markdown.head(OPEN))
    points: list[Point] = []
    async for point in curve(client, load.questions(route), capacity, LOADS, load.seconds):
        points.append(point)
        run = point.run
        cells = [f"{point.load:.0%}", f"{point.offered:.1f}", f"{run.goodput(objective_s):.1f}"]
        typer.echo(markdown.row([*cells, *_percentiles(run), str(run.failed)]))
    typer.echo(
        f"\nThe knee (most goodput for the waiting) is at {knee(points, objective_s).load:.0%} of capacity."
    )


def _percentiles(run: Run) -> list[str]:
    from service.load.markdown import milliseconds

    return [milliseconds(run.percentile(percent)) for percent in (50, 95, 99)]


def _bodies(images: list[Path] | None) -> list[bytes]:
    """The files to send: the user's as they are, or photographs drawn at the usual size."""
    if images:
        return [picture.path.read_bytes() for picture in find_pictures(images)]
    from service.load.photographs import drawn

    return drawn(PICTURES, WIDTH, HEIGHT)
