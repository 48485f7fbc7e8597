"""What `/metrics` reports to Prometheus. Each server has its own registry: several may run in one process."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """Counters of requests and of the model's batches."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._seconds_per_request = 0.0

        def histogram(name: str, text: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(f"vlmtune_{name}", text, buckets=buckets, registry=self._registry)

        self.requests = Counter("vlmtune_requests", "Answered requests.", ("path", "status"), registry=self._registry)
        self.request_seconds = Histogram(
            "vlmtune_request_seconds",
            "From the request's headers to the end of its answer.",
            ("path",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.in_flight = Gauge("vlmtune_requests_in_flight", "Accepted, not answered.", registry=self._registry)
        self.waiting = Gauge("vlmtune_jobs_waiting", "Prepared, not in a batch yet.", registry=self._registry)
        self.batch_size = histogram("batch_size", "Requests in one prefix tree.", (1, 2, 4, 8, 16, 32, 64, 128))
        self.batch_seconds = histogram("batch_seconds", "Computing one batch.")
        self.queue_seconds = histogram("queue_seconds", "From a prepared request to its batch.")
        self.tokens = Counter("vlmtune_generated_tokens", "Tokens of open answers.", registry=self._registry)

    def batch_done(self, num_requests: int, seconds: float) -> None:
        """Count a batch of the model."""
        self.batch_size.observe(num_requests)
        self.batch_seconds.observe(seconds)
        # A moving average over about the last twenty batches.
        self._seconds_per_request += 0.05 * (seconds / num_requests - self._seconds_per_request)

    def seconds_per_request(self) -> float:
        """The model's current time per request."""
        return self._seconds_per_request

    def render(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self._registry)
