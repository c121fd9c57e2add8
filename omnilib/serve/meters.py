"""What /metrics shows, in Prometheus' text format."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 30)  # edges of the histogram


class Meters:
    """Counters of one server."""

    def __init__(self):
        self.registry = CollectorRegistry()
        self.answers = Counter("omni_answers", "Answers by status code", ["status"], registry=self.registry)
        self.audio = Counter("omni_audio_seconds", "Seconds of speech sent", registry=self.registry)
        self.tokens = Counter("omni_tokens", "Tokens that the brain wrote", registry=self.registry)
        self.first = Histogram(
            "omni_first_sound_seconds", "From request to first sound", buckets=SECONDS, registry=self.registry
        )

    def watch(self, name: str, what: str, count: Callable[[], int]) -> None:
        """Show a number as it is when it is asked for."""
        Gauge(f"omni_{name}", what, registry=self.registry).set_function(count)
