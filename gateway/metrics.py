"""What Prometheus sees. On the hot path plain integers are added; prometheus-client builds its families at scrape time.

(`Counter.inc` takes a lock and about a microsecond; a dictionary entry takes a twentieth of that.) Label values are
bounded: doors, effects and outcomes are closed sets, and upstreams beyond MAX_UPSTREAMS share the label `other`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

ADDED_BOUNDS: Final = (50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 50_000, 250_000)
"""Microseconds the gateway itself adds to a call."""

UPSTREAM_BOUNDS: Final = (500, 1_000, 5_000, 10_000, 50_000, 100_000, 500_000, 1_000_000, 5_000_000, 30_000_000)
MAX_UPSTREAMS: Final = 100


class Histogram:
    """Counts per bucket and a sum, in microseconds."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[int, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0

    def add(self, microseconds: int) -> None:
        self.counts[bisect_left(self.bounds, microseconds)] += 1
        self.total += microseconds

    def buckets(self) -> list[tuple[str, float]]:
        running = 0
        rows: list[tuple[str, float]] = []
        for bound, count in zip(self.bounds, self.counts, strict=False):
            running += count
            rows.append((repr(bound / 1_000_000), running))
        return [*rows, ("+Inf", running + self.counts[-1])]


class Gauge:
    """A value read at scrape time: name, help, and a function giving (labels, value) rows."""

    def __init__(
        self, name: str, text: str, labels: tuple[str, ...], read: Callable[[], Iterable[tuple[tuple[str, ...], float]]]
    ) -> None:
        self.name, self.text, self.labels, self.read = name, text, labels, read


class Metrics(Collector):
    """The counters of one worker. `call` is the hot path's only touch."""

    def __init__(self) -> None:
        self.calls: defaultdict[tuple[str, str, str], int] = defaultdict(int)
        self.refused: defaultdict[tuple[str, str], int] = defaultdict(int)
        self.added = Histogram(ADDED_BOUNDS)
        self.upstream: dict[str, Histogram] = {}
        self.faults: defaultdict[str, int] = defaultdict(int)
        self.gauges: list[Gauge] = []
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def call(self, door: str, effect: str, outcome: str) -> None:
        self.calls[door, effect, outcome] += 1

    def passed(self, door: str, outcome: str, upstream: str, upstream_us: int, added_us: int) -> None:
        """A call that was forwarded, at its end. `added_us` -1: not to be told from the upstream's time."""
        self.calls[door, "allow", outcome] += 1
        if added_us >= 0:
            added = self.added
            added.counts[bisect_left(ADDED_BOUNDS, added_us)] += 1
            added.total += added_us
        histogram = self.upstream.get(upstream)
        if histogram is None:
            self.upstream_time(upstream, upstream_us)
        else:
            histogram.counts[bisect_left(UPSTREAM_BOUNDS, upstream_us)] += 1
            histogram.total += upstream_us

    def refusal(self, door: str, code: str) -> None:
        """A request turned away before it became a call."""
        self.refused[door, code] += 1

    def fault(self, where: str) -> None:
        """Something on the reporting path failed; counted, never raised."""
        self.faults[where] += 1

    def upstream_time(self, name: str, microseconds: int) -> None:
        histogram = self.upstream.get(name)
        if histogram is None:
            label = name if len(self.upstream) < MAX_UPSTREAMS else "other"
            histogram = self.upstream.setdefault(label, Histogram(UPSTREAM_BOUNDS))
        histogram.add(microseconds)

    def collect(self) -> Iterable[Metric]:
        yield self._counter(
            "agenticmail_calls",
            "Calls by door, effect of the verdict and outcome.",
            ("door", "effect", "outcome"),
            self.calls,
        )
        yield self._counter(
            "agenticmail_refused_requests",
            "Requests refused before any policy was asked.",
            ("door", "code"),
            self.refused,
        )
        faults = CounterMetricFamily("agenticmail_faults", "Faults on the reporting path.", labels=["where"])
        for where, count in self.faults.items():
            faults.add_metric([where], count)
        yield faults
        added = HistogramMetricFamily("agenticmail_added_latency_seconds", "Time the gateway itself added to a call.")
        added.add_metric([], self.added.buckets(), self.added.total / 1e6)
        yield added
        upstream = HistogramMetricFamily(
            "agenticmail_upstream_latency_seconds", "Time until an upstream's answer began.", labels=["upstream"]
        )
        for name, histogram in self.upstream.items():
            upstream.add_metric([name], histogram.buckets(), histogram.total / 1e6)
        yield upstream
        for gauge in self.gauges:
            family = GaugeMetricFamily(gauge.name, gauge.text, labels=gauge.labels)
            for labels, value in gauge.read():
                family.add_metric(labels, value)
            yield family

    @staticmethod
    def _counter(name: str, text: str, labels: tuple[str, ...], values: Mapping[Any, int]) -> CounterMetricFamily:
        family = CounterMetricFamily(name, text, labels=labels)
        for key, count in values.items():
            family.add_metric(key, count)
        return family

    def exposition(self) -> bytes:
        """The text format of Prometheus."""
        return generate_latest(self._registry)
