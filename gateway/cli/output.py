"""Results: one JSON value for programs, tables for people on a terminal, aligned plain text where nobody watches."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final

import click
import msgspec

PLAIN_WIDTH: Final = 10_000
"""Columns where the output is no terminal: lines are cut by whoever reads them, not by us."""

STYLES: Final = {"allow": "green", "ok": "green", "active": "green", "deny": "red", "denied": "red", "problem": "red",
                 "hold": "yellow", "held": "yellow", "warning": "yellow", "suspended": "yellow", "unknown": "yellow",
                 "archived": "dim", "revoked": "dim", "expired": "dim"}  # fmt: skip
"""Words that carry a state -> how they look. The word always stands; colour only helps to find it."""


@cache
def console() -> Any:
    """rich's console on standard output: colours on a terminal without NO_COLOR, plain text otherwise."""
    from rich.console import Console

    watched = sys.stdout.isatty()
    return Console(
        width=None if watched else PLAIN_WIDTH, highlight=False, soft_wrap=not watched, emoji=False,
        no_color=True if os.environ.get("NO_COLOR") else None, markup=False,
    )  # fmt: skip


def emit_json(value: Any) -> None:
    """One value on standard output. Indented for eyes, on one line for programs."""
    data = msgspec.json.encode(value)
    click.echo((msgspec.json.format(data, indent=2) if sys.stdout.isatty() else data).decode())


def say(text: str = "", style: str = "") -> None:
    """A line for people."""
    console().print(text, style=style or None)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], empty: str, caption: str = "") -> None:
    """A table for people; `empty` says what to do when there is nothing."""
    cells = [[str(cell) for cell in row] for row in rows]
    if not cells:
        say(empty)
        return
    if console().is_terminal:
        _drawn(columns, cells)
    else:
        _aligned(columns, cells)
    if caption:
        say(caption, "dim")


def _drawn(columns: Sequence[str], rows: list[list[str]]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", expand=False)
    for place, column in enumerate(columns):
        shown.add_column(column, overflow="fold", no_wrap=place == 0)
    for row in rows:
        shown.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in row))
    console().print(shown)


def _aligned(columns: Sequence[str], rows: list[list[str]]) -> None:
    """Whole cells in columns, two spaces apart: nothing is cut or folded, so that lines can be searched and split."""
    lines = [list(columns), *rows]
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
    for line in lines:
        click.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())


def facts(pairs: Iterable[tuple[str, Any]]) -> None:
    """Names and values, one a line, aligned. Empty values are left out."""
    from rich.text import Text

    shown = [(name, str(value)) for name, value in pairs if value not in ("", None, (), [], {})]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        console().print(Text(f"{name:<{width}}  ", style="dim") + Text(value, style=STYLES.get(value, "")))


def moment(milliseconds: int) -> str:
    """A time for people, in UTC; "" for 0."""
    if not milliseconds:
        return ""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def duration(microseconds: int) -> str:
    """A duration for people."""
    if microseconds >= 1_000_000:
        return f"{microseconds / 1_000_000:.1f} s"
    return f"{microseconds / 1000:.1f} ms" if microseconds >= 1000 else f"{microseconds} µs"


def pointing(text: str) -> str:
    """Text that may come from anywhere, fit for one line of a terminal: no control characters in it."""
    return "".join(char if char.isprintable() else "?" for char in text)
