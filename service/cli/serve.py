"""`vit-attention serve`: one process, one device, one port."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import Annotated

import typer

from service.cli.flags import setting, settings_from
from service.errors import ServiceError
from service.settings import Precision, Runtime

BACKLOG = 2048


def serve(
    ctx: typer.Context,
    host: Annotated[str | None, setting("host")] = None,
    port: Annotated[int | None, setting("port")] = None,
    model: Annotated[list[str] | None, setting("model")] = None,
    device: Annotated[str | None, setting("device")] = None,
    precision: Annotated[Precision | None, setting("precision")] = None,
    runtime: Annotated[Runtime | None, setting("runtime")] = None,
    model_store: Annotated[Path | None, setting("model_store")] = None,
    threads: Annotated[int | None, setting("threads")] = None,
    max_batch: Annotated[int | None, setting("max_batch")] = None,
    max_wait_ms: Annotated[float | None, setting("max_wait_ms")] = None,
    max_queue: Annotated[int | None, setting("max_queue")] = None,
    timeout_s: Annotated[float | None, setting("timeout_s")] = None,
    drain_s: Annotated[float | None, setting("drain_s")] = None,
    api_keys_file: Annotated[Path | None, setting("api_keys_file")] = None,
    log_format: Annotated[str | None, setting("log_format")] = None,
    log_level: Annotated[str | None, setting("log_level")] = None,
) -> None:
    """Serve models over HTTP until Ctrl-C.

    Every flag has an environment variable, which the flag overrides; the settings without a flag are in
    openapi.md.
    """
    settings = settings_from(ctx.params)
    listener = _bind(settings.host, settings.port)

    from service import logs
    from service.cli.server import run

    logs.configure(settings.log_format, settings.log_level)
    run(settings, listener)


def _bind(host: str, port: int) -> socket.socket:
    """Listens before anything is loaded, so that a port in use is told at once; requests wait."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    if os.name == "posix":
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ServiceError(_bind_failure(host, port, error)) from error
    return listener


def _bind_failure(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"Port {port} on {host} is in use: stop the program that listens there, or choose another "
            "port with --port."
        )
    if error.errno == errno.EACCES:
        return f"Port {port} on {host} is reserved for administrators: choose one above 1023 with --port."
    return f"Can't listen on {host}, port {port}: {error.strerror or error}."
