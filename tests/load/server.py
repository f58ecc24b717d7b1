"""A server in a process of its own, for the scripts in this folder."""

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import psutil


@contextlib.asynccontextmanager
async def server(*command: str, log: Path | None = None) -> AsyncIterator[tuple[str, psutil.Process]]:
    """Python with that command and a free port behind it, once it is ready: its address, and its process.

    log: where its stderr goes, instead of the script's own.
    It is told to stop at the end, and must then end with exit code 0.
    """
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with log.open("w") if log else contextlib.nullcontext() as stderr:
        process = await asyncio.create_subprocess_exec(sys.executable, *command, str(port), stderr=stderr)
    try:
        async with httpx.AsyncClient() as client:
            while (await status(client, url + "/readyz")) != 200:
                assert process.returncode is None, "the server ended"
                await asyncio.sleep(0.1)
        yield url, psutil.Process(process.pid)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        code = await process.wait()
    assert code == 0, f"the server ended with exit code {code}"


async def status(client: httpx.AsyncClient, url: str) -> int:
    try:
        return (await client.get(url)).status_code
    except httpx.TransportError:
        return 0
