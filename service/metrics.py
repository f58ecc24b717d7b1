"""Everything that /metrics shows, on a registry of its own, so that an app can be made many times."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from service.types import Capture

PREFIX = "vit_attention"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The service's counters, gauges and histograms. Every method may be called from any thread."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            f"{PREFIX}_requests",
            "Requests by route and status; 499 is a client that hung up.",
            ["method", "route", "status"],
            registry=registry,
        )
        self._request_seconds = Histogram(
            f"{PREFIX}_request_seconds",
            "From the request's head to the end of its answer, by route and status.",
            ["route", "status"],
            buckets=SECONDS,
            registry=registry,
        )
        self._stage_seconds = Histogram(
            f"{PREFIX}_stage_seconds",
            "Time in each stage of a request; queue is the wait for the device.",
            ["stage"],
            buckets=SECONDS,
            registry=registry,
        )
        self._refusals = Counter(
            f"{PREFIX}_refusals",
            "Requests answered with a problem, by its type.",
            ["reason"],
            registry=registry,
        )
        self._cancellations = Counter(
            f"{PREFIX}_cancellations", "Requests whose client hung up before the answer.", registry=registry
        )
        self._jobs_dropped = Counter(
            f"{PREFIX}_jobs_dropped",
            "Accepted requests dropped before they were computed: cancelled or expired.",
            ["reason"],
            registry=registry,
        )
        self._batch_size = Histogram(
            f"{PREFIX}_batch_size", "Images in a forward pass.", ["capture"], buckets=SIZES, registry=registry
        )
        self._forward_seconds = Histogram(
            f"{PREFIX}_forward_seconds",
            "Time of a forward pass.",
            ["capture"],
            buckets=SECONDS,
            registry=registry,
        )
        self._queue_length = Gauge(
            f"{PREFIX}_queue_length", "Images that wait for the device.", registry=registry
        )
        self._held = Gauge(
            f"{PREFIX}_held",
            "What accepted requests hold: places, body bytes, decoded pixels.",
            ["budget"],
            registry=registry,
        )
        self._device_memory = Gauge(
            f"{PREFIX}_device_memory_bytes",
            "Memory of a CUDA device: allocated by tensors, reserved by the process.",
            ["kind"],
            registry=registry,
        )

    def observe_request(
        self, method: str, route: str, status: int, seconds: float, stages: Mapping[str, float]
    ) -> None:
        """Counts an answered request, with the seconds that it took in all and in each stage."""
        self._requests.labels(method, route, str(status)).inc()
        self._request_seconds.labels(route, str(status)).observe(seconds)
        for stage, spent in stages.items():
            self._stage_seconds.labels(stage).observe(spent)

    def count_refusal(self, reason: str) -> None:
        """Counts a problem answered, by the last part of its type."""
        self._refusals.labels(reason).inc()

    def count_cancellation(self) -> None:
        """Counts a client that hung up before its answer."""
        self._cancellations.inc()

    def count_drop(self, reason: str) -> None:
        """Counts an accepted request that was dropped before it was computed, cancelled or expired."""
        self._jobs_dropped.labels(reason).inc()

    def observe_batch(self, size: int, capture: Capture, seconds: float) -> None:
        """Records a forward pass: images, what was captured, seconds."""
        self._batch_size.labels(capture.value).observe(size)
        self._forward_seconds.labels(capture.value).observe(seconds)

    def watch_queue(self, length: Callable[[], int]) -> None:
        """Shows length() as the queue's length from now on."""
        self._queue_length.set_function(length)

    def watch_budget(self, budget: str, held: Callable[[], int]) -> None:
        """Shows held() as what is held of that budget from now on."""
        self._held.labels(budget).set_function(held)

    def watch_device_memory(self, kind: str, size: Callable[[], int]) -> None:
        """Shows size() as the bytes of device memory of that kind from now on."""
        self._device_memory.labels(kind).set_function(size)

    def families(self) -> list[Metric]:
        """The metrics of the service itself, those of the process left out."""
        return [family for family in self.registry.collect() if family.name.startswith(PREFIX)]

    def render(self) -> bytes:
        """The Prometheus text of all of it."""
        return generate_latest(self.registry)
