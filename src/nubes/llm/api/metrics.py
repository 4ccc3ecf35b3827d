"""Prometheus metrics of engines: counters read from `Stats` when scraped, latencies from the deltas as they pass."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from nubes.llm.live import Engine, Stats
from nubes.llm.spec import Delta, Finish

FIRST_S = (
    0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0,
)  # fmt: skip
BETWEEN_S = (
    0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75,
    1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
WHOLE_S = (0.01, 0.03, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 480.0, 1920.0)

# Histograms: about, buckets, and what vLLM calls it.
_HISTOGRAMS: Mapping[str, tuple[str, Sequence[float], str]] = {
    "time_to_first_token": ("From a request's arrival to its first token.", FIRST_S, "time_to_first_token"),
    "inter_token": ("Between two tokens of a choice.", BETWEEN_S, "inter_token_latency"),
    "time_per_output_token": (
        "Of a choice: from its first token to its last, over the tokens after the first.",
        BETWEEN_S,
        "request_time_per_output_token",
    ),
    "queue": ("From a request's arrival until its prompt is worked on.", WHOLE_S, "request_queue_time"),
    "prefill": ("From a prompt's first step to the first token.", WHOLE_S, "request_prefill_time"),
    "decode": ("From a request's first token to its last.", WHOLE_S, "request_decode_time"),
    "request": ("From a request's arrival to its end.", WHOLE_S, "e2e_request_latency"),
}
# Gauges and counters: kind, about, and what vLLM calls it.
_STATS: Mapping[str, tuple[str, str, str]] = {
    "requests_running": ("gauge", "Requests in the batch.", "num_requests_running"),
    "requests_waiting": ("gauge", "Requests that wait for room.", "num_requests_waiting"),
    "kv_usage_ratio": ("gauge", "Share of the KV cache that is taken.", "kv_cache_usage_perc"),
    "kv_blocks": ("gauge", "Blocks of KV there are.", ""),
    "stalled_seconds": ("gauge", "How long work has been there without a step that ended.", ""),
    "prefix_cache_queries": ("counter", "Prompt tokens looked up in the prefix cache.", "prefix_cache_queries"),
    "prefix_cache_hits": ("counter", "Prompt tokens found in the prefix cache.", "prefix_cache_hits"),
    "preemptions": ("counter", "Requests that had to give their KV back.", "num_preemptions"),
    "prompt_tokens": ("counter", "Prompt tokens computed or found.", "prompt_tokens"),
    "generation_tokens": ("counter", "Tokens generated.", "generation_tokens"),
    "steps": ("counter", "Steps of the model.", ""),
}


def _values(stats: Stats) -> dict[str, float]:
    return {
        "requests_running": stats.running,
        "requests_waiting": stats.waiting,
        "kv_usage_ratio": 1 - stats.free_blocks / stats.blocks if stats.blocks else 0.0,
        "kv_blocks": stats.blocks,
        "stalled_seconds": stats.stalled_s,
        "prefix_cache_queries": stats.prefix_queries,
        "prefix_cache_hits": stats.prefix_hits,
        "preemptions": stats.preemptions,
        "prompt_tokens": stats.prompt_tokens,
        "generation_tokens": stats.generation_tokens,
        "steps": stats.steps,
    }


class Metrics:
    """A registry of its own. `vllm`: the same figures under vLLM's names as well."""

    def __init__(self, engines: Mapping[str, Engine], vllm: bool = False) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.engines = engines
        self.vllm = vllm
        self._histograms = {
            name: Histogram(f"nubes_llm_{name}_seconds", about, ["model"], buckets=buckets, registry=None)
            for name, (about, buckets, _) in _HISTOGRAMS.items()
        }
        labels = ["model", "finish"]
        self._ends = Counter("nubes_llm_requests", "Choices by how they ended.", labels, registry=None)
        labels = ["route", "status"]
        self.http = Counter("nubes_llm_http_requests", "HTTP requests.", labels, registry=None)
        self.models = {
            name: {kind: histogram.labels(name) for kind, histogram in self._histograms.items()} for name in engines
        }
        self.registry.register(_Scrape(self))

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def ended(self, model: str, finish: Finish) -> None:
        self._ends.labels(model, finish).inc()

    def collect(self) -> Iterator[Metric]:
        stats = {name: _values(engine.stats()) for name, engine in self.engines.items()}
        for name, (kind, about, theirs) in _STATS.items():
            family = GaugeMetricFamily if kind == "gauge" else CounterMetricFamily
            for full, label in ((f"nubes_llm_{name}", "model"), (f"vllm:{theirs}", "model_name")):
                if label == "model" or (self.vllm and theirs):
                    read = family(full, about, labels=[label])
                    for model, values in stats.items():
                        read.add_metric([model], values[name])
                    yield read
        for name, histogram in self._histograms.items():
            for metric in histogram.collect():
                yield metric
                if self.vllm:
                    yield _renamed(metric, f"vllm:{_HISTOGRAMS[name][2]}_seconds", {"model": "model_name"})
        for metric in self._ends.collect():
            yield metric
            if self.vllm:
                yield _renamed(metric, "vllm:request_success", {"model": "model_name", "finish": "finished_reason"})
        yield from self.http.collect()


class _Scrape(Collector):
    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics

    def collect(self) -> Iterator[Metric]:
        return self.metrics.collect()


def _renamed(metric: Metric, name: str, labels: Mapping[str, str]) -> Metric:
    """The same samples under another name, with other names for labels."""
    new = Metric(name, metric.documentation, metric.type)
    for sample in metric.samples:
        named = {labels.get(key, key): value for key, value in sample.labels.items()}
        new.add_sample(name + sample.name.removeprefix(metric.name), named, sample.value)
    return new


class Watch:
    """One request on its way: what its deltas say about time."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self.metrics = metrics
        self.model = model
        self.histograms = metrics.models[model]
        self.arrived_s = time.monotonic()
        self.first_s = 0.0
        self.last_s: dict[int, float] = {}
        self.choices: dict[int, tuple[float, int]] = {}  # when its first token came, and how many tokens it has
        self.queued_s: float | None = None

    def saw(self, delta: Delta) -> None:
        now, count, index = time.monotonic(), len(delta.tokens), delta.index
        if self.queued_s is None and delta.queued_s is not None:
            self.queued_s = delta.queued_s
            self.histograms["queue"].observe(delta.queued_s)
        if count:
            if not self.first_s:
                self.first_s = now
                self.histograms["time_to_first_token"].observe(now - self.arrived_s)
                if self.queued_s is not None:
                    self.histograms["prefill"].observe(max(now - self.arrived_s - self.queued_s, 0.0))
            last = self.last_s.get(index)
            if last is not None:
                for _ in range(count):  # several at once share the time since the last
                    self.histograms["inter_token"].observe((now - last) / count)
            self.last_s[index] = now
            begun, before = self.choices.get(index, (now, 0))
            self.choices[index] = begun, before + count
        if delta.finish is not None:
            begun, total = self.choices.get(index, (now, 0))
            if total > 1:
                self.histograms["time_per_output_token"].observe((now - begun) / (total - 1))
            self.metrics.ended(self.model, delta.finish)

    def end(self, whole: bool, missing: int) -> None:
        """The last of it. `whole`: it was not left or lost before its end; `missing`: choices that had none."""
        now = time.monotonic()
        for _ in range(missing):
            self.metrics.ended(self.model, "abort")
        if not whole:
            return
        self.histograms["request"].observe(now - self.arrived_s)
        if self.first_s:
            self.histograms["decode"].observe(now - self.first_s)
