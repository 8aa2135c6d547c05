"""What a server counts, for Prometheus to fetch."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

# From a digit on a fast machine to the longest time that is usual for a limit.
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
BATCHES = (1, 2, 4, 8, 16, 32, 64)


class ServerMetrics:
    """The counters of one server, in a registry of their own: a process may have several servers."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = self._counter("requests", "Requests by path and status", ["path", "status"])
        self.refused = self._counter("refused", "Requests that were refused, by reason", ["code"])
        self.audio_seconds = self._counter("audio_seconds", "Audio that was recognised", ["model"])
        self.streams = self._counter("streams", "Streams by how they ended", ["end"])
        self.running = Gauge("chorus_running", "Requests and streams that are worked on", registry=self.registry)
        self.request_seconds = self._histogram("request_seconds", "What requests took", ["path"], SECONDS)
        self.batch_size = self._histogram("batch_size", "Recordings in a batch", ["model"], BATCHES)
        self.batch_wait_seconds = self._histogram(
            "batch_wait_seconds", "What the first recording of a batch waited", ["model"], SECONDS
        )

    def _counter(self, name: str, text: str, labels: Sequence[str]) -> Counter:
        return Counter(f"chorus_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, labels: Sequence[str], buckets: Sequence[float]) -> Histogram:
        return Histogram(f"chorus_{name}", text, labels, buckets=buckets, registry=self.registry)
