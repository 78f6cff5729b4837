"""Where settings come from: defaults, then a TOML file, then the environment, then flags; the last one said wins.

The file is the one named by `--config` or `AGENTICMAIL_CONFIG`, else `./agenticmail.toml` if it is there. A variable's
name is `AGENTICMAIL_` and the key's path with `_` for each dot, in capitals: `server.port` is
`AGENTICMAIL_SERVER_PORT`. Lists are separated by commas, `plugins.config` is JSON. Every key must be known and every
value must fit, wherever it comes from: what does not is a `SettingsError` that names the path, where it was said, and
the key that was meant. Relative paths in a file are relative to that file's folder, so that a server may be started
from anywhere.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

import msgspec

from ..catalog.errors import SettingsError
from .settings import Settings

FILE_NAME: Final = "agenticmail.toml"
PREFIX: Final = "AGENTICMAIL_"
DEFAULT: Final = "default"

NOT_SETTINGS: Final = {
    "AGENTICMAIL_CONFIG": "the settings file to read, where --config is not given",
    "AGENTICMAIL_DEBUG": "1: the command line shows the whole traceback of a fault",
}
"""Variables of ours that are no settings, and what they do."""

FOREIGN: Final = frozenset(
    {"AGENTICMAIL_API_KEY", "AGENTICMAIL_API_URL", "AGENTICMAIL_MASTER_KEY", "AGENTICMAIL_CONFORMANCE_DIR"}
)
"""Variables of the AgenticMail server and its clients, which may well run on the same machine, and of our test runs."""

SECRET_PATHS: Final = frozenset({"secret_key", "approvals.smtp_password"})
"""Never shown, not even when they are wrong."""


class Loaded(msgspec.Struct, frozen=True):
    """Settings and, for each path (`server.port`), where its value was said. `file` is the TOML file that was read."""

    settings: Settings
    origins: dict[str, str]
    file: Path | None = None


class Problem(msgspec.Struct, frozen=True):
    """One thing that is wrong: which key, said where, why, and what was probably meant."""

    path: str
    origin: str
    message: str
    nearest: str = ""


Said = dict[str, tuple[Any, str, bool]]
"""Path -> (value, origin, whether it is text that must be read first)."""


def load(
    config: str | Path | None = None, *, environ: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None, folder: Path | None = None,
) -> Loaded:  # fmt: skip
    """Read all sources. `flags`: path -> value, None for one that was not given. `folder`: the working directory.

    Raises SettingsError with every problem.
    """
    environ = os.environ if environ is None else environ
    folder = Path.cwd() if folder is None else folder
    problems: list[Problem] = []
    said: Said = {}
    file = _file(config or environ.get("AGENTICMAIL_CONFIG") or None, folder)
    if file is not None:
        said |= _from_file(file, folder, problems)
    said |= _from_environment(environ, problems)
    said |= {
        path: (value, f"flag {flag_of(path)}", False) for path, value in (flags or {}).items() if value is not None
    }
    settings, origins = _build(said, problems)
    if problems or settings is None:
        raise _refusal(problems)
    return Loaded(settings, origins, file)


def flag_of(path: str) -> str:
    """The flag that sets a path, where there is one: `server.port` is `--port`."""
    return "--" + path.rpartition(".")[2].replace("_", "-")


def variable_of(path: str) -> str:
    """The environment variable of a path."""
    return PREFIX + path.replace(".", "_").upper()


# -- what there is to set ----------------------------------------------------------------------------------------
def _leaves(struct: type[msgspec.Struct], before: str = "") -> Iterator[tuple[str, Any, Any]]:
    for field in msgspec.structs.fields(struct):
        path = before + field.name
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from _leaves(field.type, f"{path}.")
        else:
            default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
            yield path, field.type, default


LEAVES: Final = {path: (kind, default) for path, kind, default in _leaves(Settings)}
"""Every setting: path -> (type, default)."""

SECTIONS: Final = frozenset(path.rpartition(".")[0] for path in LEAVES) - {""}
VARIABLES: Final = {variable_of(path): path for path in LEAVES}


def _nearest(path: str) -> str:
    """The setting that was probably meant, or "": the like of it in its own section, then anywhere, then a section."""
    section, _, last = path.rpartition(".")
    own = {known.rpartition(".")[2]: known for known in LEAVES if known.rpartition(".")[0] == section}
    tails = {known.rpartition(".")[2]: known for known in LEAVES}
    for names, cutoff in ((own, 0.6), (tails, 0.75), ({name: name for name in SECTIONS}, 0.6)):
        near = difflib.get_close_matches(last, names, 1, cutoff)
        if near:
            return names[near[0]]
    return ""


# -- sources -----------------------------------------------------------------------------------------------------
def _file(config: str | Path | None, folder: Path) -> Path | None:
    if config is None:
        found = folder / FILE_NAME
        return found if found.is_file() else None
    file = folder / Path(config).expanduser()
    if not file.is_file():
        raise SettingsError(f"There is no settings file {config}.", path=str(config))
    return file


def _from_file(file: Path, folder: Path, problems: list[Problem]) -> Said:
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SettingsError(f"{file} cannot be read: {reason}.", path=str(file)) from None
    said: Said = {}
    _walk(table, "", str(file), said, problems)
    home = file.resolve().parent
    if home != folder.resolve():
        for path in ("data_dir", "database"):
            if path in said and isinstance(said[path][0], str):
                said[path] = (anchored(path, said[path][0], home), *said[path][1:])
    return said


def _walk(table: Mapping[str, Any], before: str, origin: str, said: Said, problems: list[Problem]) -> None:
    for key, value in table.items():
        path = before + key
        if path in LEAVES:
            said[path] = (value, origin, False)
        elif path not in SECTIONS:
            problems.append(_unknown(path, origin, _nearest(path)))
        elif isinstance(value, dict):
            _walk(value, f"{path}.", origin, said, problems)
        else:
            problems.append(Problem(path, origin, f"{path} is a table: write [{path}] and its keys below"))


def _unknown(name: str, origin: str, nearest: str) -> Problem:
    hint = f"; did you mean {nearest}?" if nearest else ""
    return Problem(name, origin, f"{name} is not a setting{hint}", nearest)


_SQLITE: Final = re.compile(r"(sqlite(?:\+\w+)?:///)(?!/|:memory:)(.+)")


def anchored(path: str, value: str, home: Path) -> str:
    """The value of `data_dir` or `database` with a relative path in it made absolute, starting from `home`."""
    if path == "data_dir":
        return str(home / Path(value).expanduser())
    found = _SQLITE.fullmatch(value)
    return f"{found[1]}{home / found[2]}" if found else value


def _from_environment(environ: Mapping[str, str], problems: list[Problem]) -> Said:
    said: Said = {}
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name in NOT_SETTINGS or name in FOREIGN:
            continue
        path = VARIABLES.get(name)
        if path is None:
            problems.append(_unknown(name, "environment", _nearest_variable(name.removeprefix(PREFIX))))
        else:
            said[path] = (environ[name], f"environment {name}", True)
    return said


def _nearest_variable(tail: str) -> str:
    tails = [name.removeprefix(PREFIX) for name in (*VARIABLES, *NOT_SETTINGS)]
    near = difflib.get_close_matches(tail, tails, 1, 0.7)
    if near:
        return PREFIX + near[0]
    meant = _nearest(tail.lower())
    return variable_of(meant) if meant in LEAVES else ""


# -- values ------------------------------------------------------------------------------------------------------
def _build(said: Said, problems: list[Problem]) -> tuple[Settings | None, dict[str, str]]:
    origins = dict.fromkeys(LEAVES, DEFAULT)
    tree: dict[str, Any] = {}
    for path, (value, origin, is_text) in said.items():
        kind = LEAVES[path][0]
        try:
            fitting = msgspec.convert(_read(value, kind) if is_text else value, kind, strict=not is_text)
        except ValueError as error:  # msgspec.ValidationError and json's are ValueErrors
            problems.append(Problem(path, origin, f"{path}: {_why(error, kind)}{_shown(path, value)}"))
            continue
        origins[path] = origin
        section, _, key = path.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[key] = fitting
    if problems:
        return None, origins
    return msgspec.convert(tree, Settings), origins


def _read(text: str, kind: Any) -> Any:
    """The text of a variable, as far as its type asks for more than a plain word."""
    if get_origin(kind) is tuple:
        return tuple(word.strip() for word in text.split(",") if word.strip())
    if get_origin(kind) is dict:
        return msgspec.json.decode(text.encode())
    return text


def _why(error: ValueError, kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"it must be one of {', '.join(get_args(kind))}"
    sentence = re.sub(r"`([^`]*)`", r"\1", str(error).partition(" - at `$")[0])
    return sentence[:1].lower() + sentence[1:]


def _shown(path: str, value: Any) -> str:
    if path in SECRET_PATHS or path == "database":
        return ""
    text = repr(value)
    return f"; it is {text if len(text) <= 60 else text[:57] + '...'}"


def _refusal(problems: list[Problem]) -> SettingsError:
    lines = [f"{problem.message} ({problem.origin})" for problem in problems]
    first = problems[0]
    message = lines[0] if len(lines) == 1 else f"{len(lines)} settings are wrong:\n  " + "\n  ".join(lines)
    return SettingsError(
        message, path=first.path, origin=first.origin, nearest=first.nearest,
        problems=[msgspec.structs.asdict(problem) for problem in problems],
    )  # fmt: skip
