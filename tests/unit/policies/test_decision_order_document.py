"""docs/decision-order.md lists every code, every operator and every field's worth of the running order: undocumented is red."""

import re
from pathlib import Path
from typing import get_args

from agenticmail_enterprise.catalog.calls import Code
from agenticmail_enterprise.catalog.profiles import Operator
from agenticmail_enterprise.policies import chain
from agenticmail_enterprise.policies.expressions import MAX_TEXT
from agenticmail_enterprise.policies.limits import PERIODS, RUNS

DOCUMENT = (Path(__file__).parents[3] / "docs" / "decision-order.md").read_text()


def section(title: str) -> str:
    return re.split(r"^## ", DOCUMENT.partition(f"\n## {title}\n")[2], flags=re.MULTILINE)[0]


def first_cells(text: str) -> list[str]:
    return [name for row in re.findall(r"^\| (`[^|]*?) \|", text, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)]


def test_every_code_is_listed_once_and_no_other():
    assert sorted(first_cells(section("Codes"))) == sorted(get_args(Code))


def test_every_operator_is_listed_once_and_no_other():
    assert sorted(first_cells(section("Argument rules"))) == sorted(get_args(Operator))


def test_the_steps_are_those_of_the_chain():
    steps = re.findall(r"^ {4}(\d \w+)", chain.__doc__, re.MULTILINE)
    assert re.findall(r"^\| (\d \w+)", DOCUMENT, re.MULTILINE) == [
        step.replace("5 argument", "5 arguments") for step in steps
    ]


def test_figures_are_those_of_the_code():
    assert f"{MAX_TEXT:,} characters" in DOCUMENT
    assert f"Up to a ceiling of {RUNS} the window is exact" in DOCUMENT
    assert all(f"{seconds:,.0f} seconds" in DOCUMENT for _, seconds in PERIODS)
