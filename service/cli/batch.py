"""Many pictures through one client: some at a time, results in order, failures told at the end."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from service.cli.files import Picture
from service.cli.session import Local, Remote, service_of
from service.errors import (
    CannotExplain,
    InvalidParameter,
    OutOfDeviceMemory,
    ServiceError,
    Unauthorized,
    Unavailable,
    UnknownModel,
)

if TYPE_CHECKING:
    from service.client import AsyncClient

T = TypeVar("T")
Look = Callable[["AsyncClient", Picture], Awaitable[T]]


@dataclass(frozen=True)
class Failure:
    """A picture with which something is wrong, and the sentence that says what."""

    picture: Picture
    detail: str


@dataclass(frozen=True)
class Batch:
    """How pictures are run: where, how many at the same time, and whether under a progress bar."""

    service: Local | Remote
    in_flight: int
    quiet: bool

    @classmethod
    def of(cls, flags: Mapping[str, Any]) -> Batch:
        """As a command's flags say; raises typer.BadParameter where they contradict."""
        return cls(service_of(flags), flags["in_flight"], flags["quiet"])

    def run(self, pictures: Sequence[Picture], look: Look[T], show: Callable[[T], None]) -> None:
        """Looks at every picture and shows what came of it, in their order.

        One bad picture does not stop the rest: all are told on stderr at the end, and then the command
        exits with 1.
        """
        failures: list[Failure] = []
        try:
            asyncio.run(self._run(pictures, look, show, failures))
        finally:
            for failure in failures:
                typer.echo(f"{failure.picture.path}: {failure.detail}", err=True)
        if failures:
            raise typer.Exit(1)

    async def _run(
        self,
        pictures: Sequence[Picture],
        look: Look[T],
        show: Callable[[T], None],
        failures: list[Failure],
    ) -> None:
        from tqdm import tqdm

        no_bar = True if self.quiet or len(pictures) == 1 else None  # None: not where stderr is no terminal
        async with (
            self.service.client() as client,
            aclosing(each(pictures, partial(look, client), self.in_flight)) as results,
        ):
            with tqdm(total=len(pictures), unit=" pictures", disable=no_bar) as bar:
                async for result in results:
                    bar.update()
                    if isinstance(result, Failure):
                        failures.append(result)
                    else:
                        show(result)


async def each(
    pictures: Sequence[Picture], work: Callable[[Picture], Awaitable[T]], in_flight: int
) -> AsyncGenerator[T | Failure]:
    """Yields each picture's result or failure, in order, with `in_flight` of them under way.

    What would fail every other picture too is raised instead.
    """
    under_way: deque[asyncio.Task[T | Failure]] = deque()
    try:
        for picture in pictures:
            if len(under_way) == in_flight:
                yield await under_way.popleft()
            under_way.append(asyncio.create_task(_result(picture, work)))
        while under_way:
            yield await under_way.popleft()
    finally:
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)


async def _result(picture: Picture, work: Callable[[Picture], Awaitable[T]]) -> T | Failure:
    try:
        return await work(picture)
    except ServiceError as error:
        if _fails_all(error):
            raise
        return Failure(picture, _told(error))
    except OSError as error:
        return Failure(picture, f"{error.strerror or error}.")


def _fails_all(error: ServiceError) -> bool:
    """Whether the fault is not the picture's: a wrong option or key, a server that is gone."""
    common = (CannotExplain, InvalidParameter, Unauthorized, Unavailable, UnknownModel)
    return isinstance(error, common) and not isinstance(error, OutOfDeviceMemory)


def _told(error: ServiceError) -> str:
    """An internal error refers to the log: the id is what to search it for."""
    if type(error) is ServiceError and error.request_id:
        return f"{error.detail} ({error.request_id})"
    return error.detail
