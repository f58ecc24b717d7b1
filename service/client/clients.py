"""The two clients: they send what `Endpoints` builds, and hand its answer back."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx
from httpx_retries import RetryTransport

from service.client.endpoints import Call, Endpoints

P = ParamSpec("P")
T = TypeVar("T")
Endpoint = Callable[Concatenate[Endpoints, P], Call[T]]

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT_S = 60.0


def _blocking(endpoint: Endpoint[P, T]) -> Callable[Concatenate[Client, P], T]:
    """The endpoint as a method of Client: the same parameters, the result itself."""

    @functools.wraps(endpoint)
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        call = endpoint(self._endpoints, *args, **kwargs)
        with self._endpoints.failures_told():
            response = self._http.send(call.request)
        return call.result(response)

    return method


def _awaitable(endpoint: Endpoint[P, T]) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    """The endpoint as a method of AsyncClient; files and pictures are read and coded in a thread."""

    @functools.wraps(endpoint)
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        call = await asyncio.to_thread(endpoint, self._endpoints, *args, **kwargs)
        with self._endpoints.failures_told():
            response = await self._http.send(call.request)
        return await asyncio.to_thread(call.result, response)

    return method


class Client:
    """Talks to a ViT Attention Service.

    base_url: where it listens. api_key: where it asks for one. timeout: seconds to wait for an answer.
    transport: what carries the requests instead of the network; httpx.WSGITransport, a stand-in in a test.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        api_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT_S,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._endpoints = Endpoints(base_url, api_key, timeout)
        self._http = httpx.Client(
            transport=RetryTransport(transport or httpx.HTTPTransport(), self._endpoints.retry)
        )

    predict = _blocking(Endpoints.predict)
    rollout = _blocking(Endpoints.rollout)
    blocks = _blocking(Endpoints.blocks)
    models = _blocking(Endpoints.models)

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class AsyncClient:
    """Client, awaited; many calls at once share its connections, and the server batches them.

    transport: httpx.ASGITransport(app) runs the service in this process.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        api_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT_S,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._endpoints = Endpoints(base_url, api_key, timeout)
        self._http = httpx.AsyncClient(
            transport=RetryTransport(transport or httpx.AsyncHTTPTransport(), self._endpoints.retry)
        )

    predict = _awaitable(Endpoints.predict)
    rollout = _awaitable(Endpoints.rollout)
    blocks = _awaitable(Endpoints.blocks)
    models = _awaitable(Endpoints.models)

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()
