"""Types of arguments."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from ...catalog.errors import BadRequest, ValidationFailed

T = TypeVar("T")


class Pair(click.ParamType[tuple[str, str]]):
    """NAME=VALUE."""

    name = "NAME=VALUE"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:  # fmt: skip
        if isinstance(value, tuple):
            return value
        name, separator, rest = str(value).partition("=")
        if not separator or not name:
            self.fail(f"{value!r} is not of the form NAME=VALUE.", param, ctx)
        return name, rest


PAIR = Pair()


def from_environment(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Values that are in variables: {NAME: VARIABLE's value}. UsageError for a variable that is not set."""
    values: dict[str, str] = {}
    for name, variable in pairs:
        value = os.environ.get(variable)
        if not value:
            raise click.UsageError(f"The variable {variable} (for {name}) is not set.")
        values[name] = value
    return values


def from_files(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Values that are in files: {NAME: first line}. UsageError for one that cannot be read."""
    values: dict[str, str] = {}
    for name, file in pairs:
        values[name] = read_text(file).rstrip("\r\n")
    return values


def read_text(file: str) -> str:
    """The text of a file, or of standard input for `-`."""
    if file == "-":
        return sys.stdin.read()
    try:
        return Path(file).expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise click.UsageError(f"{file} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise click.UsageError(f"{file} is not UTF-8 text.") from None


def read_struct(file: str, kind: type[T], what: str) -> T:
    """A typed value from a TOML or JSON file (`-`: JSON on standard input). Raises BadRequest or ValidationFailed."""
    text = read_text(file)
    try:
        if file.endswith(".toml"):
            return msgspec.toml.decode(text.encode(), type=kind)
        return msgspec.json.decode(text.encode(), type=kind)
    except msgspec.ValidationError as error:
        sentence, _, where = str(error).partition(" - at `$")
        path = "/" + where.rstrip("`").lstrip(".").replace(".", "/").replace("[", "/").replace("]", "")
        raise ValidationFailed(
            [(path if len(path) > 1 else "", "invalid", f"{sentence}.")], f"{file} is no {what}."
        ) from None
    except msgspec.DecodeError as error:
        raise BadRequest(f"{file} cannot be read as {'TOML' if file.endswith('.toml') else 'JSON'}: {error}.") from None
