"""The shared half of both clients: it builds requests and reads answers, and sends nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import httpx
from httpx_retries import Retry

from service.client.images import Image, image_bytes
from service.client.problems import service_error
from service.client.results import (
    Blocks,
    ModelInfo,
    Prediction,
    Rollout,
    read_blocks,
    read_models,
    read_prediction,
    read_rollout,
)
from service.errors import DeadlineExceeded, InvalidParameter, ServiceError, Unavailable

T = TypeVar("T")
Query = dict[str, str | int | float | bool]
Json = dict[str, Any]

CONNECT_TIMEOUT_S = 5.0
DEFAULT_TOP_K = 5
BODY = {"Content-Type": "application/octet-stream"}


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request, and how to read the JSON of its answer."""

    request: httpx.Request
    read: Callable[[Json], T]

    def result(self, response: httpx.Response) -> T:
        """What the answer holds, or the ServiceError that it tells of."""
        if not response.is_success:
            raise service_error(response)
        try:
            return self.read(response.json())
        except (ValueError, KeyError, TypeError) as error:
            raise ServiceError(
                f"{self.request.url} answered, but not as this service does. Is it a ViT Attention Service "
                "of this version?"
            ) from error


class Endpoints:
    """The service's endpoints at one address, as a method each that returns the Call to send.

    The endpoints are pure, so a POST is as safe to repeat as a GET: a full or starting server, and a
    connection that breaks, are tried again, for `timeout_s` seconds of waiting at the most.
    """

    def __init__(self, base_url: str, api_key: str | None, timeout_s: float) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise InvalidParameter(f"The server's address starts with http:// or https://, not {base_url!r}.")
        self.base_url = base_url.rstrip("/")
        self.headers = {"Accept": "application/json", "X-Request-Timeout": f"{timeout_s:g}"}
        if api_key:
            self.headers["X-API-Key"] = api_key
        self.timeout = httpx.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s))
        self.retry = Retry(
            total=5,
            allowed_methods=["GET", "POST"],
            status_forcelist=[429, 503],
            retry_on_exceptions=[httpx.NetworkError, httpx.ConnectTimeout, httpx.RemoteProtocolError],
            backoff_factor=0.1,
            total_timeout=timeout_s,
        )

    def predict(self, image: Image, top_k: int = DEFAULT_TOP_K, model: str | None = None) -> Call[Prediction]:
        """The `top_k` likeliest labels of an image, by the named model or the server's default."""
        return self._post("/predict", image, top_k, model, {}, read_prediction)

    def rollout(
        self,
        image: Image,
        top_k: int = DEFAULT_TOP_K,
        head_fusion: Literal["mean", "max", "min"] = "mean",
        discard_ratio: float = 0.0,
        overlay: Literal["none", "masked", "heatmap"] = "none",
        grid: bool = False,
        model: str | None = None,
    ) -> Call[Rollout]:
        """The labels, and the attention rollout as a mask of the image's size.

        head_fusion: how a block's heads become one map. discard_ratio: the share of each row's weakest
        attention that is dropped, in [0, 1). overlay: also lay the mask over the image. grid: also return
        the raw map.
        """
        query: Query = {
            "head_fusion": head_fusion,
            "discard_ratio": discard_ratio,
            "overlay": overlay,
            "grid": grid,
        }
        return self._post("/attention/rollout", image, top_k, model, query, read_rollout)

    def blocks(
        self,
        image: Image,
        top_k: int = DEFAULT_TOP_K,
        layout: Literal["row", "grid"] = "row",
        grids: bool = False,
        max_side: int = 0,
        model: str | None = None,
    ) -> Call[Blocks]:
        """The labels, and a canvas with one heat map a block.

        layout: all panels in one row, or near-square. grids: also return the raw maps. max_side: a panel's
        longer side in pixels; 0 keeps the image's own size.
        """
        query: Query = {"layout": layout, "grids": grids, "max_side": max_side}
        return self._post("/attention/blocks", image, top_k, model, query, read_blocks)

    def models(self) -> Call[list[ModelInfo]]:
        """The models that the server has loaded."""
        return Call(self._request("GET", "/models", {}, None), read_models)

    @contextmanager
    def failures_told(self) -> Iterator[None]:
        """Turns what httpx raises while sending into a ServiceError that says what to do."""
        try:
            yield
        except httpx.ConnectError as error:
            raise Unavailable(
                f"Can't connect to {self.base_url} ({error}). Is the server running? `make serve` starts one."
            ) from error
        except httpx.TimeoutException as error:
            raise DeadlineExceeded(
                f"{self.base_url} did not answer within {self.timeout.read:g} s; a larger timeout may help."
            ) from error
        except httpx.TransportError as error:
            raise Unavailable(
                f"The connection to {self.base_url} broke: {str(error) or repr(error)}."
            ) from error

    def _post(
        self,
        path: str,
        image: Image,
        top_k: int,
        model: str | None,
        query: Query,
        read: Callable[[Json], T],
    ) -> Call[T]:
        if top_k != DEFAULT_TOP_K:  # not sent, a model with fewer classes answers with all of them
            query = {**query, "top_k": top_k}
        if model is not None:
            query = {**query, "model": model}
        return Call(self._request("POST", path, query, image_bytes(image)), read)

    def _request(self, method: str, path: str, query: Query, content: bytes | None) -> httpx.Request:
        headers = self.headers if content is None else {**self.headers, **BODY}
        return httpx.Request(
            method,
            self.base_url + path,
            params=query,
            headers=headers,
            content=content,
            extensions={"timeout": self.timeout.as_dict()},
        )
