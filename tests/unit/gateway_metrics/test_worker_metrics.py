"""One scrape answers for all workers; a worker that died is neither lost nor counted twice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agenticmail_enterprise.gateway.metrics import MAX_UPSTREAMS, Family, Gauge, Metrics
from agenticmail_enterprise.gateway.metrics_share import Share, begin, end


def scraped(metrics: Metrics) -> dict[tuple[str, tuple[str, ...]], float]:
    """(name, label values in the order of their names) -> value, for all that a scrape says."""
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(metrics.exposition().decode())
        for sample in family.samples
    }


def worked(calls: int, upstream: str = "mail", in_flight: int = 0, faults: int = 0) -> Metrics:
    metrics = Metrics()
    metrics.gauges += [
        Gauge(Family("agenticmail_in_flight", "In flight."), lambda: [((), in_flight)]),
        Gauge(Family("agenticmail_lag", "Lag.", merge="max"), lambda: [((), in_flight)]),
        Gauge(Family("agenticmail_plugin_faults", "Faults.", ("plugin",)), lambda: [(("x",), faults)], counts=True),
    ]
    for _ in range(calls):
        metrics.passed("mcp", "ok", upstream, 2_000, 80)
    return metrics


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


async def test_alone_a_worker_tells_its_own(tmp_path: Path) -> None:
    metrics = worked(3)
    metrics.refusal("mcp", "BAD_REQUEST")
    metrics.fault("audit")
    metrics.store_operation("get", "agent", 0.0002, "")
    metrics.store_operation("get", "agent", 0.0002, "STORE_UNAVAILABLE")
    found = scraped(metrics)
    assert found["agenticmail_calls_total", ("mcp", "allow", "ok")] == 3
    assert found["agenticmail_refused_requests_total", ("BAD_REQUEST", "mcp")] == 1
    assert found["agenticmail_faults_total", ("audit",)] == 1
    assert found["agenticmail_added_latency_seconds_count", ()] == 3
    assert found["agenticmail_added_latency_seconds_bucket", ("0.0001",)] == 3
    assert found["agenticmail_upstream_latency_seconds_bucket", ("0.001", "mail")] == 0
    assert found["agenticmail_upstream_latency_seconds_bucket", ("0.005", "mail")] == 3
    assert found["agenticmail_store_latency_seconds_count", ("get",)] == 2
    assert found["agenticmail_store_errors_total", ("STORE_UNAVAILABLE", "get")] == 1


async def test_whoever_is_scraped_answers_for_all(tmp_path: Path) -> None:
    folder = begin(tmp_path)
    workers = [worked(3, in_flight=2, faults=1), worked(4, in_flight=5), worked(5, upstream="files")]
    shares = [Share(metrics, folder, number) for number, metrics in enumerate(workers)]
    for share in shares:
        await share.start()
    for metrics in workers:
        found = scraped(metrics)
        assert found["agenticmail_calls_total", ("mcp", "allow", "ok")] == 12
        assert found["agenticmail_upstream_latency_seconds_count", ("mail",)] == 7
        assert found["agenticmail_upstream_latency_seconds_count", ("files",)] == 5
        assert found["agenticmail_in_flight", ()] == 7  # the sum of all
        assert found["agenticmail_lag", ()] == 5  # the worst of all
        assert found["agenticmail_plugin_faults_total", ("x",)] == 1
    workers[0].call("checks", "deny", "denied")
    await shares[0].copy()
    assert scraped(workers[2])["agenticmail_calls_total", ("checks", "deny", "denied")] == 1
    for share in shares:
        await share.stop()
    end(folder)
    assert not folder.exists()


async def test_a_worker_that_died_is_carried_on_by_its_successor_and_counted_once(tmp_path: Path) -> None:
    folder = begin(tmp_path)
    one, two = worked(3, in_flight=9, faults=2), worked(4)
    for number, metrics in enumerate((one, two)):
        share = Share(metrics, folder, number)
        await share.start()
        await share.stop()
    # Worker 0 is killed: its file stays, its process does not.
    file = folder / "0.json"
    file.write_bytes(file.read_bytes().replace(f'"pid":{os.getpid()}'.encode(), f'"pid":{dead_pid()}'.encode()))
    found = scraped(two)
    assert found["agenticmail_calls_total", ("mcp", "allow", "ok")] == 7
    assert found["agenticmail_plugin_faults_total", ("x",)] == 2
    assert found["agenticmail_in_flight", ()] == 0  # nothing is in flight in a dead process
    again = worked(1, faults=1)
    successor = Share(again, folder, 0)
    await successor.start()
    for metrics in (again, two):
        found = scraped(metrics)
        assert found["agenticmail_calls_total", ("mcp", "allow", "ok")] == 8
        assert found["agenticmail_added_latency_seconds_count", ()] == 8
        assert found["agenticmail_added_latency_seconds_sum", ()] == pytest.approx(8 * 80e-6)
        assert found["agenticmail_upstream_latency_seconds_count", ("mail",)] == 8
        assert found["agenticmail_plugin_faults_total", ("x",)] == 3
    await successor.stop()


async def test_labels_stay_bounded_over_all_workers(tmp_path: Path) -> None:
    folder = begin(tmp_path)
    workers = [Metrics(), Metrics()]
    for number, metrics in enumerate(workers):
        for place in range(MAX_UPSTREAMS + 50):
            metrics.upstream_time(f"server-{number}-{place}", 1)
        await Share(metrics, folder, number).start()
    await Share(workers[0], folder, 0).copy()
    found = scraped(workers[1])
    names = {labels[0] for name, labels in found if name == "agenticmail_upstream_latency_seconds_count"}
    assert len(names) == MAX_UPSTREAMS + 1
    assert "other" in names
    total = sum(value for (name, _), value in found.items() if name == "agenticmail_upstream_latency_seconds_count")
    assert total == 2 * (MAX_UPSTREAMS + 50)


async def test_a_file_that_cannot_be_read_is_left_out_and_one_that_cannot_be_written_is_counted(tmp_path: Path) -> None:
    folder = begin(tmp_path)
    (folder / "7.json").write_bytes(b"{half")
    metrics = worked(2)
    share = Share(metrics, folder, 0)
    await share.start()
    assert scraped(metrics)["agenticmail_calls_total", ("mcp", "allow", "ok")] == 2
    end(folder)
    metrics.call("mcp", "allow", "ok")
    await share.copy()
    assert metrics.faults["metrics_share"] == 1
    await share.stop()


def test_a_start_removes_what_dead_ones_left_and_nothing_else(tmp_path: Path) -> None:
    dead, living = tmp_path / "metrics" / str(dead_pid()), tmp_path / "metrics" / str(os.getppid())
    dead.mkdir(parents=True)
    living.mkdir()
    (dead / "0.json").write_bytes(b"{}")
    folder = begin(tmp_path)
    assert folder.is_dir()
    assert not dead.exists()
    assert living.is_dir()
    assert list(begin(tmp_path).iterdir()) == []
