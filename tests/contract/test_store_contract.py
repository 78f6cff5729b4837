"""Every check on every reachable backend."""

from __future__ import annotations

from pathlib import Path

import pytest

from agenticmail_enterprise.tests.contract.backends import BACKENDS
from agenticmail_enterprise.tests.contract.suite import Backend, Check, bench_on, every_check

CASES = [
    pytest.param(backend, check, id=f"{backend.name}-{check.name}")
    for backend in BACKENDS
    if backend.reachable()
    for check in every_check()
    if check.suits(backend)
]


@pytest.mark.parametrize(("backend", "check"), CASES)
async def test_contract(backend: Backend, check: Check, tmp_path: Path) -> None:
    async with bench_on(backend, tmp_path) as bench:
        await check.run(bench)


def test_the_shipped_backends_are_all_in_the_table() -> None:
    assert {"memory", "sqlite"} <= {backend.name for backend in BACKENDS if backend.reachable()}
    names = [check.name for check in every_check()]
    assert len(names) == len(set(names)) >= 40
