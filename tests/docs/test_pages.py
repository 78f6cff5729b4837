"""docs/api.md and docs/mcp.md: their tables are the code's, in both directions, and their examples can be read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from agenticmail_enterprise.catalog.calls import Code
from agenticmail_enterprise.catalog.errors import EnterpriseError
from agenticmail_enterprise.catalog.records import Outcome
from agenticmail_enterprise.gateway.doors.mcpfacts import JUDGED, LISTS, POLICY_DENIED
from agenticmail_enterprise.gateway.scopes import SCOPES
from tests.docs.pages import ROOT, Page, spans

API = Page.read("docs/api.md")
OPERATIONS = Page.read("docs/operations.md")
MCP = Page.read("docs/mcp.md")


def errors(kind: type[EnterpriseError] = EnterpriseError) -> Iterator[tuple[str, str]]:
    """(code, status) of every error of the catalog."""
    yield kind.code, str(kind.status)
    for child in kind.__subclasses__():
        if child.__module__.endswith("catalog.errors"):
            yield from errors(child)


def first_column(page: Page, heading: str) -> list[str]:
    return [spans(row[0])[0] for row in page.table(heading)]


@pytest.mark.parametrize(
    ("heading", "known"),
    [("scope", list(SCOPES)), ("decision", list(get_args(Code))), ("outcome", list(get_args(Outcome)))],
)
def test_each_name_is_explained_once_and_none_is_made_up(heading: str, known: list[str]) -> None:
    assert sorted(first_column(API, heading)) == sorted(known)
    assert all(row[1] for row in API.table(heading))


def test_every_error_has_its_code_status_and_meaning() -> None:
    printed = [(spans(row[0])[0], row[1]) for row in API.table("error")]
    assert sorted(printed) == sorted(set(errors()))
    assert all(row[2] for row in API.table("error"))


def test_every_metric_is_explained_and_none_is_made_up() -> None:
    from agenticmail_enterprise.gateway.metrics import COUNTERS, HISTOGRAMS

    source = (ROOT / "gateway" / "runtime.py").read_text()
    gauges = re.findall(r'Family\(\s*"(\w+)"', source)
    counting = {"agenticmail_plugin_faults", "agenticmail_store_retries"}
    known = [f"{family.name}_total" for family in COUNTERS] + [family.name for family in HISTOGRAMS]
    known += [f"{name}_total" if name in counting else name for name in gauges]
    assert len(gauges) >= 6
    assert sorted(first_column(OPERATIONS, "metric")) == sorted(known)


def test_judged_and_filtered_methods_are_all_named() -> None:
    printed = {span for row in MCP.table("method") for span in spans(row[0])}
    assert JUDGED.keys() | LISTS.keys() <= printed
    assert {span for span in printed if "/" in span} <= JUDGED.keys() | LISTS.keys() | {"subscriptions/listen"}
    assert str(POLICY_DENIED) in MCP.text


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "docs").glob("*.md")))
def test_json_in_the_pages_is_json(name: str) -> None:
    for block in Page.read(f"docs/{name}").blocks():
        if block.kind == "json":
            json.loads(block.text)


def test_pages_end_their_fences_and_use_no_tabs() -> None:
    for path in [ROOT / "README.md", *Path(ROOT / "docs").rglob("*.md")]:
        page = Page(path, path.read_text(encoding="utf-8"))
        page.blocks()
        assert "\t" not in page.prose(), path.name
