"""The house keeps its shape: packages listed, floors kept, modules and functions small, modules importable alone."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLOORS = ("gateway", "policies", "catalog", "adapters", "admin_ui", "deploy")
FILES = sorted(path for floor in FLOORS for path in (ROOT / floor).rglob("*.py"))
MAX_MODULE = 460
MAX_FUNCTION = 55


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("agenticmail_enterprise", *(parts[:-1] if parts[-1] == "__init__" else parts)))


def test_pyproject_lists_every_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = set(project["tool"]["setuptools"]["packages"])
    there = {module_of(path) for path in FILES if path.name == "__init__.py"} | {"agenticmail_enterprise"}
    assert listed == there


def test_every_folder_has_its_guide() -> None:
    for path in FILES:
        if path.name == "__init__.py":
            assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= MAX_MODULE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = (node.end_lineno or 0) - node.lineno + 1
            assert size <= MAX_FUNCTION, f"{node.name} has {size} lines"


def test_nothing_reaches_out_of_the_project() -> None:
    for path in FILES:
        assert "../shared" not in path.read_text()


def test_adapters_and_pages_are_loaded_by_name_only() -> None:
    for path in FILES:
        floor = path.relative_to(ROOT).parts[0]
        if floor not in {"gateway", "policies", "catalog", "deploy"}:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                assert node.module.split(".")[0] not in {"adapters", "admin_ui"}, f"{path}:{node.lineno}"


def test_every_module_can_be_imported_first() -> None:
    """No module leans on another having been imported before it (circular imports show here)."""
    names = [module_of(path) for path in FILES if "__main__" not in path.name]
    program = (
        "import sys, importlib\n"
        "for name in sys.argv[1:]:\n"
        "    for known in [k for k in sys.modules if k.startswith('agenticmail_enterprise')]: del sys.modules[known]\n"
        "    importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *names], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
