"""docs/failures.md says what happens when something breaks: every row is a test, and every test is a row."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs" / "failures.md"
STORIES = ROOT / "tests" / "flows" / "test_failures.py"


def rows() -> list[list[str]]:
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_row_is_whole() -> None:
    assert len(rows()) >= 13
    for row in rows():
        assert len(row) == 4, row
        assert all(row), row


def test_every_row_names_a_test_and_every_test_has_a_row() -> None:
    tests = [
        node.name
        for node in ast.parse(STORIES.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    ]
    named = [row[3].strip("`") for row in rows()]
    assert sorted(named) == sorted(tests)
    assert len(set(named)) == len(named)
