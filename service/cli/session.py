"""A client for a command: of a server, or of the same app in this process. One code path from there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from service.cli.flags import settings_from
from service.errors import NotReady
from service.settings import Settings

if TYPE_CHECKING:
    from service.client import AsyncClient

READY_TIMEOUT_S = 120.0
LOCAL_TIMEOUT_S = 3600.0
"""In this process nobody else is kept waiting, and a large model on a CPU may be slow."""

LOCAL_FLAGS = ("device", "precision", "model_store")


@dataclass(frozen=True)
class Remote:
    """A server. model: which of its models to ask, or None for its default."""

    url: str
    api_key: str | None
    model: str | None

    @asynccontextmanager
    async def client(self) -> AsyncIterator[AsyncClient]:
        """A client of the server, once it is ready."""
        from service.client import AsyncClient

        async with AsyncClient(self.url, self.api_key) as client:
            await self._ready(client)
            yield client

    async def _ready(self, client: AsyncClient) -> None:
        """Raises, before any picture is sent, what every request would raise."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + READY_TIMEOUT_S
        while not await client.models():
            if loop.time() > give_up:
                raise NotReady(f"{self.url} has loaded no model for {READY_TIMEOUT_S:g} s; see its log.")
            await asyncio.sleep(0.5)


@dataclass(frozen=True)
class Local:
    """The service in this process, with one model, which is then the default."""

    settings: Settings
    model: None = None

    @asynccontextmanager
    async def client(self) -> AsyncIterator[AsyncClient]:
        """A client of the app itself, once its model is loaded."""
        import httpx

        from service import logs
        from service.api.app import create_app
        from service.client import AsyncClient

        logs.configure(self.settings.log_format, self.settings.log_level)
        app = create_app(self.settings)
        async with app.router.lifespan_context(app):
            await app.state.engine.wait_ready()
            transport = httpx.ASGITransport(app)
            async with AsyncClient(timeout=LOCAL_TIMEOUT_S, transport=transport) as client:
                yield client


def service_of(flags: Mapping[str, Any]) -> Remote | Local:
    """The service that a command's flags ask for; raises typer.BadParameter where they contradict."""
    if flags["url"] is None:
        return Local(_local_settings(flags))
    useless = [name for name in LOCAL_FLAGS if flags[name] is not None]
    if useless:
        raise typer.BadParameter(f"--{useless[0].replace('_', '-')} is the server's to choose with --url.")
    return Remote(flags["url"], flags["api_key"], flags["model"])


def _local_settings(flags: Mapping[str, Any]) -> Settings:
    """What the environment says of serving others, its keys and limits, means nothing here."""
    settings = settings_from(
        {
            **{name: flags[name] for name in LOCAL_FLAGS},
            "model": flags["model"] and [flags["model"]],
            "host": "127.0.0.1",
            "api_keys": [],
            "max_queue": flags["in_flight"],
            "timeout_s": LOCAL_TIMEOUT_S,
            "log_level": "warning",
        }
    )
    return settings.model_copy(update={"api_keys_file": None, "traces": False})
