"""Prometheus metrics: counted from the control plane's events and commands, read from its state when scraped."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from nubes import __version__
from nubes.functions import events as e

if TYPE_CHECKING:
    from nubes.drivers.local.control_plane import ControlPlane

LATENCY_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
FLUSH_S = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0)
HOW = ("warm", "delayed", "cold")


class Histogram:
    """Counts by bucket; an observation costs a bisection."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def add_to(self, family: HistogramMetricFamily, labels: list[str]) -> None:
        buckets, seen = [], 0
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            seen += count
            buckets.append((bound, float(seen)))
        family.add_metric(labels, buckets, self.total)


class Metrics:
    """Watches a control plane from its start on."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane
        self.calls: dict[tuple[str, str], int] = {}  # (function, status)
        self.starts: dict[tuple[str, str], int] = {}  # (function, how a call got its instance)
        self.latency: dict[str, Histogram] = {}
        self.wait: dict[str, Histogram] = {}
        self.instance_start: dict[str, Histogram] = {}  # by what it was forked from
        self.lost: dict[str, int] = {}
        self.flush = Histogram(FLUSH_S)
        self.http: dict[tuple[str, str], int] = {}
        self.http_s = Histogram(LATENCY_S)
        self._arrived: dict[int, tuple[str, float]] = {}
        self._source: dict[int, str] = {}
        plane.journal.flushed = self.flush.observe
        plane.observe(e.Dispatch, self._dispatched)
        plane.observe(e.Resolve, self._resolved)
        plane.observe(e.StartInstance, self._started)
        plane.observe(e.StopInstance, self._stopped)
        plane.observe(e.InstanceReady, self._ready)
        plane.observe(e.InstanceLost, self._instance_lost)
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)

    # -- events and commands --------------------------------------------------------------------------------------

    def _dispatched(self, command: e.Dispatch) -> None:
        now = self.plane.now
        for id in command.calls:
            call = self.plane.controller.calls[id]
            if id not in self._arrived:
                self._arrived[id] = call.asked, call.arrived_s
            name = call.function.spec.name
            key = (name, HOW[command.how])
            self.starts[key] = self.starts.get(key, 0) + 1
            _histogram(self.wait, name).observe(now - call.arrived_s)

    def _resolved(self, command: e.Resolve) -> None:
        asked, arrived_s = self._arrived.pop(command.call, ("", 0.0))
        if asked:
            asked = asked.partition("#")[0]
            _histogram(self.latency, asked).observe(self.plane.now - arrived_s)
        key = (asked, command.status)
        self.calls[key] = self.calls.get(key, 0) + 1

    def _started(self, command: e.StartInstance) -> None:
        node = self.plane.controller.tree.where.get(command.node)
        name = command.function.partition("#")[0]
        self._source[command.instance] = (
            "interpreter" if node is None else "function" if node.function == name else "parent"
        )

    def _ready(self, event: e.InstanceReady) -> None:
        instance = self.plane.controller.instances.get(event.instance)
        source = self._source.pop(event.instance, "")
        if instance is not None and source:
            _histogram(self.instance_start, source).observe(self.plane.clock() - instance.started_s)

    def _stopped(self, command: e.StopInstance) -> None:
        self._source.pop(command.instance, None)

    def _instance_lost(self, event: e.InstanceLost) -> None:
        self._source.pop(event.instance, None)
        instance = self.plane.controller.instances.get(event.instance)
        if instance is not None:  # it was not told to stop
            name = instance.function.spec.name
            self.lost[name] = self.lost.get(name, 0) + 1

    # -- scrapes --------------------------------------------------------------------------------------------------

    def collect(self) -> Iterator[Metric]:
        yield from self._counted()
        yield from self._state()

    def _counted(self) -> Iterator[Metric]:
        yield _counter("nubes_calls", "Calls that ended.", ("function", "status"), self.calls)
        yield _counter("nubes_call_starts", "Calls by how they got their instance.", ("function", "kind"), self.starts)
        yield _counter("nubes_http_requests", "HTTP requests.", ("route", "status"), self.http)
        yield _counter(
            "nubes_instances_lost",
            "Instances that ended by themselves.",
            ("function",),
            {(k,): v for k, v in self.lost.items()},
        )
        for name, about, label, histograms in (
            ("nubes_call_latency_seconds", "From a call's arrival to its end.", "function", self.latency),
            ("nubes_call_wait_seconds", "From a call's arrival until it gets an instance.", "function", self.wait),
            (
                "nubes_instance_start_seconds",
                "Starts of instances, by what they came from.",
                "source",
                self.instance_start,
            ),
        ):
            family = HistogramMetricFamily(name, about, labels=[label])
            for key, histogram in histograms.items():
                histogram.add_to(family, [key])
            yield family
        for name, about, one in (
            ("nubes_log_flush_seconds", "Time to make the log safe on disk.", self.flush),
            ("nubes_http_request_seconds", "HTTP requests, from first byte in to last byte out.", self.http_s),
        ):
            family = HistogramMetricFamily(name, about)
            one.add_to(family, [])
            yield family

    def _state(self) -> Iterator[Metric]:
        plane, controller = self.plane, self.plane.controller
        info = GaugeMetricFamily("nubes_build_info", "The version that runs.", labels=["version"])
        info.add_metric([__version__], 1)
        yield info
        policies = GaugeMetricFamily("nubes_policy_info", "The policies that decide.", labels=["seam", "policy"])
        for seam, policy in controller.policies.items():
            policies.add_metric([seam, policy.text], 1)
        yield policies
        queued: dict[str, int] = {}
        instances: dict[tuple[str, str], int] = {}
        for f in controller.functions.values():
            queued[f.spec.name] = queued.get(f.spec.name, 0) + f.queued
            for state in ("busy", "idle", "starting"):
                key = (f.spec.name, state)
                instances[key] = instances.get(key, 0) + getattr(f, state)
        family = GaugeMetricFamily("nubes_queued_calls", "Calls without an instance.", labels=["function"])
        for name, count in queued.items():
            family.add_metric([name], count)
        yield family
        family = GaugeMetricFamily("nubes_instances", "Instances.", labels=["function", "state"])
        for (name, state), count in instances.items():
            family.add_metric([name, state], count)
        yield family
        nodes = controller.tree.where.values()
        for name, about, value in (
            ("nubes_parents", "Parents in the process tree that can be forked.", sum(n.ready for n in nodes)),
            (
                "nubes_parents_memory_bytes",
                "Memory private to the parents in the process tree.",
                sum(n.memory_bytes for n in nodes),
            ),
            ("nubes_cpu_cores", "CPU cores to give out.", controller.cpu),
            ("nubes_cpu_used_cores", "CPU cores given out.", controller.cpu_used),
            ("nubes_memory_bytes", "Memory to give out.", controller.memory_bytes),
            ("nubes_memory_used_bytes", "Memory given out.", controller.memory_used),
            ("nubes_calls_under_way", "Calls that have not ended.", len(controller.calls)),
            ("nubes_log_writable_ratio", "1 if the log can be written, else 0.", 0 if plane.journal.full else 1),
            ("nubes_up_seconds", "Time since the control plane started.", plane.clock() - plane.started_s),
        ):
            yield GaugeMetricFamily(name, about, value=value)
        yield CounterMetricFamily("nubes_log_records", "Records in the log.", value=plane.journal.log.count)


def _histogram(of: dict[str, Histogram], key: str) -> Histogram:
    found = of.get(key)
    if found is None:
        found = of[key] = Histogram(LATENCY_S)
    return found


def _counter(name: str, about: str, labels: Sequence[str], counts: Mapping[Any, int]) -> Metric:
    family = CounterMetricFamily(name, about, labels=labels)
    for key, count in counts.items():
        family.add_metric(key, count)
    return family
