import asyncio
from collections.abc import Callable

import httpx
import pytest

from service.load.loops import load_client


class StandIn:
    """An ASGI app that answers nobody until `enough` requests are there at once, and then everybody."""

    def __init__(self, enough: int = 1, status: int = 200) -> None:
        self.status = status
        self.enough = enough
        self.inside = self.most = self.count = 0
        self.bodies: list[bytes] = []
        self.open = asyncio.Event()

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        self.inside += 1
        self.count += 1
        self.most = max(self.most, self.inside)
        self.bodies.append((await receive())["body"])
        if self.inside >= self.enough:
            self.open.set()
        await self.open.wait()
        await asyncio.sleep(0)
        self.inside -= 1
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": b"12345"})

    def client(self) -> httpx.AsyncClient:
        return load_client(httpx.ASGITransport(self))


@pytest.fixture
def stand_in() -> type[StandIn]:
    return StandIn
