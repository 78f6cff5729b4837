"""What Prometheus sees. On the hot path plain integers are added; prometheus-client builds its families at scrape time.

(`Counter.inc` takes a lock and about a microsecond; a dictionary entry takes a twentieth of that.) Label values are
bounded: doors, effects and outcomes are closed sets, and upstreams beyond MAX_UPSTREAMS share the label `other`.

With several workers each keeps its own numbers and leaves a copy beside the others' (`metrics_share`); whoever is
scraped answers for all of them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal

import msgspec

ADDED_BOUNDS: Final = (50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 50_000, 250_000)
"""Microseconds the gateway itself adds to a call."""

UPSTREAM_BOUNDS: Final = (500, 1_000, 5_000, 10_000, 50_000, 100_000, 500_000, 1_000_000, 5_000_000, 30_000_000)
STORE_BOUNDS: Final = (100, 250, 500, 1_000, 2_500, 5_000, 10_000, 50_000, 250_000, 1_000_000, 5_000_000)
MAX_UPSTREAMS: Final = 100
OTHER: Final = "other"

Labels = tuple[str, ...]
Rows = dict[Labels, float]


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

    def include(self, other: Tally) -> None:
        """Add what another one has counted. One with other bounds (of another release) is left out."""
        if len(other.counts) == len(self.counts):
            self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
            self.total += other.total

    def buckets(self) -> list[tuple[str, float]]:
        running = 0
        rows: list[tuple[str, float]] = []
        for bound, count in zip(self.bounds, self.counts, strict=False):
            running += count
            rows.append((repr(bound / 1_000_000), running))
        return [*rows, ("+Inf", running + self.counts[-1])]


class Family(msgspec.Struct, frozen=True):
    """What is said of one metric. `merge`: how the values of several workers make one."""

    name: str
    text: str
    labels: Labels = ()
    merge: Literal["sum", "max"] = "sum"
    bounds: tuple[int, ...] = ()


CALLS: Final = Family(
    "agenticmail_calls", "Calls by door, effect of the verdict and outcome.", ("door", "effect", "outcome")
)
REFUSED: Final = Family(
    "agenticmail_refused_requests", "Requests refused before any policy was asked.", ("door", "code")
)
FAULTS: Final = Family("agenticmail_faults", "Faults on the reporting path.", ("where",))
STORE_ERRORS: Final = Family(
    "agenticmail_store_errors", "Operations of the store that failed, each try counted.", ("operation", "code")
)
COUNTERS: Final = (CALLS, REFUSED, FAULTS, STORE_ERRORS)

ADDED: Final = Family(
    "agenticmail_added_latency_seconds", "Time the gateway itself added to a call.", bounds=ADDED_BOUNDS
)
UPSTREAM: Final = Family(
    "agenticmail_upstream_latency_seconds", "Time until an upstream's answer began.", ("upstream",),
    bounds=UPSTREAM_BOUNDS,
)  # fmt: skip
STORE: Final = Family(
    "agenticmail_store_latency_seconds", "Time that an operation of the store took, each try counted.", ("operation",),
    bounds=STORE_BOUNDS,
)  # fmt: skip
HISTOGRAMS: Final = (ADDED, UPSTREAM, STORE)


class Gauge(msgspec.Struct, frozen=True):
    """A value read at scrape time, by a function giving (labels, value) rows. `counts`: it only rises, so that what a
    worker that died has counted stays."""

    family: Family
    read: Callable[[], Iterable[tuple[Labels, float]]]
    counts: bool = False


# -- a worker's numbers, as they are copied ----------------------------------------------------------------------
class Row(msgspec.Struct, array_like=True):
    labels: Labels
    value: float


class Tally(msgspec.Struct, array_like=True):
    labels: Labels
    counts: list[int]
    total: int


class Snapshot(msgspec.Struct):
    """All numbers of one worker. `gauges` hold only while process `pid` lives; everything else stays true."""

    pid: int
    counters: dict[str, list[Row]] = {}
    histograms: dict[str, list[Tally]] = {}
    gauges: dict[str, list[Row]] = {}


class Metrics:
    """The counters of one worker. `call` and `passed` are the hot path's only touch."""

    def __init__(self) -> None:
        self.calls: defaultdict[tuple[str, str, str], int] = defaultdict(int)
        self.refused: defaultdict[tuple[str, str], int] = defaultdict(int)
        self.added = Histogram(ADDED_BOUNDS)
        self.upstream: dict[str, Histogram] = {}
        self.faults: defaultdict[str, int] = defaultdict(int)
        self.store: dict[str, Histogram] = {}
        self.store_errors: defaultdict[tuple[str, str], int] = defaultdict(int)
        self.gauges: list[Gauge] = []
        #: What the other workers have counted; `metrics_share` says.
        self.others: Callable[[], Iterable[Snapshot]] = tuple
        #: Of `counts` gauges: what this worker's predecessors have counted.
        self._before: dict[str, Rows] = {}

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
            label = name if len(self.upstream) < MAX_UPSTREAMS else OTHER
            histogram = self.upstream.setdefault(label, Histogram(UPSTREAM_BOUNDS))
        histogram.add(microseconds)

    def store_operation(self, operation: str, entity: str, seconds: float, code: str) -> None:
        """The store did, or failed to do, something. `adapters.stores.observed` tells."""
        histogram = self.store.get(operation)
        if histogram is None:
            histogram = self.store.setdefault(operation, Histogram(STORE_BOUNDS))
        histogram.add(int(seconds * 1_000_000))
        if code:
            self.store_errors[operation, code] += 1

    # -- one worker's numbers, and those of several ------------------------------------------------------------------
    def snapshot(self, pid: int = 0) -> Snapshot:
        """What this worker has counted, its predecessors' counts included, and its gauges now."""
        counters = {
            CALLS.name: _rows(self.calls),
            REFUSED.name: _rows(self.refused),
            STORE_ERRORS.name: _rows(self.store_errors),
            FAULTS.name: [Row((where,), count) for where, count in self.faults.items()],
        }
        gauges: dict[str, list[Row]] = {}
        for gauge in self.gauges:
            rows = dict(gauge.read())
            if gauge.counts:
                _add(rows, self._before.get(gauge.family.name, {}).items(), gauge.family)
                counters[gauge.family.name] = _rows(rows)
            else:
                gauges[gauge.family.name] = _rows(rows)
        histograms = {
            ADDED.name: [_tally((), self.added)],
            UPSTREAM.name: [_tally((name,), histogram) for name, histogram in self.upstream.items()],
            STORE.name: [_tally((name,), histogram) for name, histogram in self.store.items()],
        }
        return Snapshot(pid, counters, histograms, gauges)

    def carry_on(self, last: Snapshot) -> None:
        """Go on counting where a worker that died has left off."""
        for name, rows in last.counters.items():
            target: Any = {CALLS.name: self.calls, REFUSED.name: self.refused, STORE_ERRORS.name: self.store_errors}
            if name in target:
                for row in rows:
                    target[name][row.labels] += int(row.value)
            elif name == FAULTS.name:
                for row in rows:
                    self.faults[row.labels[0]] += int(row.value)
            else:
                self._before[name] = {row.labels: row.value for row in rows}
        for tally in last.histograms.get(ADDED.name, ()):
            self.added.include(tally)
        for name, own, bounds in (
            (UPSTREAM.name, self.upstream, UPSTREAM_BOUNDS),
            (STORE.name, self.store, STORE_BOUNDS),
        ):
            for tally in last.histograms.get(name, ()):
                own.setdefault(tally.labels[0], Histogram(bounds)).include(tally)

    def exposition(self) -> bytes:
        """The text format of Prometheus, for all workers."""
        from .metrics_text import exposition

        kinds = {gauge.family.name: gauge for gauge in self.gauges}
        return exposition([self.snapshot(), *self.others()], kinds)


def merged_rows(family: Family, snapshots: Iterable[Snapshot], *, gauges: bool = False) -> Rows:
    """One value for each set of labels, of all workers."""
    rows: Rows = {}
    for snapshot in snapshots:
        found = (snapshot.gauges if gauges else snapshot.counters).get(family.name, ())
        _add(rows, ((row.labels, row.value) for row in found), family)
    return rows


def merged_histograms(family: Family, snapshots: Iterable[Snapshot]) -> dict[Labels, Histogram]:
    """One histogram for each set of labels, of all workers; of upstreams never more than the bound."""
    found: dict[Labels, Histogram] = {}
    for snapshot in snapshots:
        for tally in snapshot.histograms.get(family.name, ()):
            full = tally.labels not in found and len(found) >= MAX_UPSTREAMS
            found.setdefault((OTHER,) if full else tally.labels, Histogram(family.bounds)).include(tally)
    return found


def _add(rows: Rows, more: Iterable[tuple[Labels, float]], family: Family) -> None:
    for labels, value in more:
        if labels not in rows:
            rows[labels] = value
        else:
            rows[labels] = rows[labels] + value if family.merge == "sum" else max(rows[labels], value)


def _rows(values: Mapping[Any, float]) -> list[Row]:
    return [Row(labels, value) for labels, value in values.items()]


def _tally(labels: Labels, histogram: Histogram) -> Tally:
    return Tally(labels, list(histogram.counts), histogram.total)
