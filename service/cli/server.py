"""uvicorn, as this service runs it: it says when requests are answered, drains, and ends with its device."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import math
import os
import socket
import sys
from contextlib import suppress
from types import FrameType

import structlog
import uvicorn
from fastapi import FastAPI

from service.api.app import create_app
from service.cli.protocol import Protocol
from service.engine.engine import Engine
from service.engine.runner import Runner
from service.metrics import Metrics
from service.settings import DEFAULT_MODEL, Settings

log = structlog.get_logger("service")

DEMONSTRATION = (
    f"{DEFAULT_MODEL} is a small demonstration model: it knows ten drawn classes and no photographs. "
    "Get ViT-B/16 with `vit-attention models pull google/vit-base-patch16-224`, then "
    "`vit-attention serve --model vit-base-patch16-224`"
)

M_MMAP_THRESHOLD = -3
PICTURE_BYTES = 4 * 2**20
"""Blocks of that size and more are a picture's, and mapped by themselves."""

MAX_HEADER_BYTES = 64 * 1024
KEEP_ALIVE_S = 75
"""Longer than a balancer's usual 60 s: the one that still sends must not be the one hung up on."""


def run(settings: Settings, listener: socket.socket, runner: Runner | None = None) -> None:
    """Serves until a signal, or until the device thread ends, whose failure is then raised.

    runner: what computes; by default one on the settings' device.
    """
    give_memory_back()
    metrics = Metrics()
    engine = Engine(
        settings,
        on_batch=metrics.observe_batch,
        on_end=lambda: server.stop(),
        on_drop=metrics.count_drop,
        runner=runner,
    )
    server = Server(uvicorn_config(create_app(settings, engine, metrics), settings), engine)
    server.run(sockets=[listener])
    if engine.worker.failure is not None:
        raise engine.worker.failure


def give_memory_back() -> None:
    """Makes glibc return the memory of pictures to the system at once.

    It would learn from the first freed picture to keep such blocks, and stay hundreds of megabytes too large.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, PICTURE_BYTES)


def settle() -> None:
    """Takes what the process holds for good out of the garbage collector's sight.

    A full collection would go through all of it, libraries and models' names, again and again, and stop every
    thread for a fifth of a second.
    """
    gc.collect()
    gc.freeze()


def uvicorn_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """One process; our log lines instead of uvicorn's; accepted requests are answered before the end."""
    return uvicorn.Config(
        app,
        http=Protocol,  # on h11: httptools sets no limit to the headers
        lifespan="on",
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(settings.timeout_s),
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
    )


class Server(uvicorn.Server):
    """A server of one engine.

    The first SIGTERM or SIGINT ends it gracefully, with exit code 0; the second one ends the process now.
    """

    def __init__(self, config: uvicorn.Config, engine: Engine) -> None:
        super().__init__(config)
        self.engine = engine
        self._signalled = False

    def stop(self) -> None:
        """Ends the server gracefully; from any thread."""
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Takes a signal. From here on /readyz is 503 and new work is refused."""
        if self._signalled:
            os._exit(128 + sig)
        self._signalled = True
        self.engine.drain()
        self.stop()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens at once; /readyz says when the models are loaded, and so does the log."""
        await super().startup(sockets)
        if sockets:
            self._announcement = asyncio.create_task(self._announce(_url(sockets[0])))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answers what was accepted, then closes the engine; listens on for a while if it is to."""
        log.info("stopping: answering what was accepted", accepted=self.engine.accepted)
        if self.engine.alive:
            await asyncio.sleep(self.engine.settings.drain_s)
        await super().shutdown(sockets)
        log.info("stopped")

    async def _announce(self, url: str) -> None:
        settings = self.engine.settings
        log.info("loading models", models=settings.model, store=str(settings.model_store), url=url)
        with suppress(Exception):  # run raises it
            await self.engine.wait_ready()
            settle()
            log.info("ready", url=url, models=list(self.engine.models))
        if DEFAULT_MODEL in self.engine.models:
            log.info(DEMONSTRATION)


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
