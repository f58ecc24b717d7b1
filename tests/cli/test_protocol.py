"""A head that never ends, and an answer that nobody reads, over real sockets."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from service.cli import protocol

PIECES = 400
PIECE = bytes(2**18)


async def long_answer(request: Request) -> StreamingResponse:
    """A hundred megabytes in pieces, none made before the one before it was read."""

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(PIECES):
            yield PIECE

    return StreamingResponse(pieces())


HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
async def port(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    """Of a server that waits 0.2 s for a head."""
    monkeypatch.setattr(protocol, "HEAD_S", 0.2)
    monkeypatch.setattr(protocol, "STALL_S", 0.2)
    app = Starlette(routes=[Route("/", PlainTextResponse("answered")), Route("/long", long_answer)])
    config = uvicorn.Config(app, http=protocol.Protocol, log_config=None, access_log=False, lifespan="off")
    config.load()
    state = uvicorn.server.ServerState()
    made = lambda: protocol.Protocol(config, state, {})  # noqa: E731
    server = await asyncio.get_running_loop().create_server(made, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    return head.splitlines()[0] + b" " + await reader.readexactly(len(b"answered"))


@pytest.mark.parametrize("sent", [b"", b"G", HEAD[:-1]])
async def test_an_unfinished_head_ends_the_connection(port: int, sent: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()


async def test_so_does_one_a_byte_at_a_time_after_an_answer(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(HEAD)
    assert await answer(reader) == b"HTTP/1.1 200 OK answered"

    async def trickle() -> None:
        for byte in HEAD[:-1]:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.05)

    slow = asyncio.create_task(trickle())
    assert await asyncio.wait_for(reader.read(), 10) == b""
    assert not slow.done()
    slow.cancel()
    writer.close()


async def test_a_kept_connection_and_a_slow_answer_are_left_alone(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(2):
        writer.write(HEAD[:7])
        await asyncio.sleep(0.02)
        writer.write(HEAD[7:])
        assert await answer(reader) == b"HTTP/1.1 200 OK answered"
        await asyncio.sleep(0.3)  # longer than a head may take
    writer.close()


async def test_an_unread_answer_ends_the_connection_and_a_slow_reader_gets_all_of_it(port: int) -> None:
    ask = HEAD.replace(b" / ", b" /long ")
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(ask)
    await asyncio.sleep(1)  # what the sockets hold came; the rest never will
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await asyncio.wait_for(reader.readexactly(PIECES * len(PIECE)), 30)
    writer.close()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(ask)
    came = 0
    while came < 20 * len(PIECE):
        came += len(await asyncio.wait_for(reader.read(2 * len(PIECE)), 10))
        await asyncio.sleep(0.01)
    writer.close()
