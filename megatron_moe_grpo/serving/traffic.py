"""What GET /metrics says, in Prometheus' text format."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from megatron_moe_grpo.serving.engine import Engine

BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Traffic:
    """Counters of one server."""

    def __init__(self, engine: Engine):
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "moe_grpo_requests", "Requests by endpoint and status.", ("endpoint", "status"), registry=self._registry
        )
        self.prompt_tokens = Counter("moe_grpo_prompt_tokens", "Tokens read.", registry=self._registry)
        self.completion_tokens = Counter("moe_grpo_completion_tokens", "Tokens written.", registry=self._registry)
        self.duration_s = Histogram(
            "moe_grpo_request_seconds", "From the request to its last byte.", ("endpoint",), buckets=BUCKETS_S,
            registry=self._registry,
        )  # fmt: skip
        active = Gauge("moe_grpo_active_sequences", "Sequences that are decoded together.", registry=self._registry)
        active.set_function(lambda: engine.num_active)
        waiting = Gauge("moe_grpo_waiting_sequences", "Sequences that wait for a place.", registry=self._registry)
        waiting.set_function(lambda: engine.num_waiting)

    def text(self) -> bytes:
        """All of them."""
        return generate_latest(self._registry)
