"""What the service counts, in a registry of its own, as Prometheus reads it."""

from __future__ import annotations

from edgerec_gym.errors import MissingExtraError

try:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
except ImportError:
    raise MissingExtraError("the service", "edge") from None

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics:
    """Counters of one process.

    Attributes:
        connections: phones that are connected now.
        messages, bytes: of payload, by direction ("in", "out") and kind.
        pages: pages sent.
        page_seconds: from a request to its page.
        refusals: by code.
        commit_seconds, commit_writes: of each commit of the store.
        errors: faults of the service itself.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.connections = Gauge("edgerec_connections", "Phones connected now.", registry=registry)
        by_kind = ("direction", "kind")
        self.messages = Counter("edgerec_messages", "Messages.", by_kind, registry=registry)
        self.bytes = Counter("edgerec_bytes", "Bytes of messages.", by_kind, registry=registry)
        self.pages = Counter("edgerec_pages", "Pages sent.", registry=registry)
        self.page_seconds = Histogram(
            "edgerec_page_seconds",
            "Seconds from a request to its page.",
            registry=registry,
            buckets=_SECONDS,
        )
        self.refusals = Counter("edgerec_refusals", "Refused messages.", ("code",), registry=registry)
        self.commit_seconds = Histogram(
            "edgerec_commit_seconds", "Seconds of a commit.", registry=registry, buckets=_SECONDS
        )
        self.commit_writes = Histogram(
            "edgerec_commit_writes",
            "Writes in a commit.",
            registry=registry,
            buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
        )
        self._counted: dict[tuple[str, str], tuple[Counter, Counter]] = {}
        self.errors = Counter("edgerec_errors", "Faults of the service itself.", registry=registry)

    def count(self, direction: str, kind: str, size: int) -> None:
        """Count a message."""
        counters = self._counted.get((direction, kind))
        if counters is None:  # looking them up by their labels takes longer than counting
            counters = self.messages.labels(direction, kind), self.bytes.labels(direction, kind)
            self._counted[direction, kind] = counters
        counters[0].inc()
        counters[1].inc(size)

    def committed(self, seconds: float, writes: int) -> None:
        """Count a commit; may be called from any thread."""
        self.commit_seconds.observe(seconds)
        self.commit_writes.observe(writes)

    def text(self) -> bytes:
        """Return everything as Prometheus reads it."""
        return generate_latest(self.registry)
