"""The numbers of all workers in the text format of Prometheus. Loaded at the first scrape."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from .metrics import COUNTERS, HISTOGRAMS, Family, Gauge, Snapshot, merged_histograms, merged_rows


def exposition(snapshots: Sequence[Snapshot], gauges: Mapping[str, Gauge]) -> bytes:
    """`snapshots`: one a worker; `gauges`: by name."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(snapshots, gauges))
    return generate_latest(registry)


class _Families(Collector):
    def __init__(self, snapshots: Sequence[Snapshot], gauges: Mapping[str, Gauge]) -> None:
        self._snapshots = snapshots
        self._gauges = gauges

    def collect(self) -> Iterable[Metric]:
        for family in COUNTERS:
            yield self._counter(family)
        for family in HISTOGRAMS:
            yield self._histogram(family)
        for gauge in self._gauges.values():
            yield self._counter(gauge.family) if gauge.counts else self._gauge(gauge.family)

    def _counter(self, family: Family) -> Metric:
        metric = CounterMetricFamily(family.name, family.text, labels=family.labels)
        for labels, value in merged_rows(family, self._snapshots).items():
            metric.add_metric(labels, value)
        return metric

    def _gauge(self, family: Family) -> Metric:
        metric = GaugeMetricFamily(family.name, family.text, labels=family.labels)
        for labels, value in merged_rows(family, self._snapshots, gauges=True).items():
            metric.add_metric(labels, value)
        return metric

    def _histogram(self, family: Family) -> Metric:
        metric = HistogramMetricFamily(family.name, family.text, labels=family.labels)
        for labels, histogram in merged_histograms(family, self._snapshots).items():
            metric.add_metric(labels, histogram.buckets(), histogram.total / 1e6)
        return metric
