"""What an argument rule can demand of one value. Each operator compiles its operands into a test, once.

A test answers None (the value meets the demand) or says what is wrong with it. It fails closed on types: a number where
a string belongs does not "not equal" a forbidden word, it is refused. Adding one: a factory here, a row in `OPERATORS`.
"""

from __future__ import annotations

import math
import posixpath
import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import msgspec

from ..catalog.profiles import Operator
from .addresses import BadAddress, domain_of, domains
from .expressions import MAX_TEXT, BadExpression, Expression

Operand = str | int | float | bool
Operands = tuple[Operand, ...]
Test = Callable[[Any], str | None]
"""value -> what is wrong with it, as the end of a sentence ("it is not ..."), or None."""

MAX_PATH: Final = 4_096
MAX_COMMAND: Final = 16_384
MAX_REMEMBERED: Final = 256
"""Characters of a text of addresses up to which its parse is remembered: agents write to the same people."""

_short_domains: Final = lru_cache(maxsize=4_096)(domains)
_expression: Final = lru_cache(maxsize=512)(Expression)


class BadRule(ValueError):
    """The rule cannot be compiled; the message says why."""


def is_number(value: Any) -> bool:
    """A JSON number: true is none, and neither are NaN and infinity."""
    return type(value) is int or (type(value) is float and math.isfinite(value))


def same(value: Any, operand: Operand) -> bool:
    """JSON equality: 1 equals 1.0, and never true."""
    if is_number(value) and is_number(operand):
        return bool(value == operand)
    return type(value) is type(operand) and value == operand


def _strings(values: Operands) -> tuple[str, ...]:
    if not values or not all(isinstance(value, str) and value for value in values):
        raise BadRule("this operator takes one text or more")
    return tuple(str(value) for value in values)


def _one_number(values: Operands) -> int | float:
    if len(values) != 1 or not is_number(values[0]):
        raise BadRule("this operator takes one number")
    value = values[0]
    assert not isinstance(value, str)  # noqa: S101 - is_number has said so; for the type checker
    return value


def _listed(values: Operands) -> str:
    return ", ".join(str(value) for value in values)


def _scalars(values: Operands, single: bool) -> Operands:
    if not values or (single and len(values) != 1):
        raise BadRule("this operator takes exactly one value" if single else "this operator takes one value or more")
    if any(isinstance(value, float) and not math.isfinite(value) for value in values):
        raise BadRule("a number must be finite")
    return values


def _among(values: Operands, single: bool) -> Test:
    operands = _scalars(values, single)
    texts = frozenset(operand for operand in operands if isinstance(operand, str))

    def test(value: Any) -> str | None:
        if type(value) is str:
            return None if value in texts else "it is none of the allowed values"
        return None if any(same(value, operand) for operand in operands) else "it is none of the allowed values"

    return test


def _not_among(values: Operands, single: bool) -> Test:
    operands = _scalars(values, single)
    kinds = {"number" if is_number(operand) else type(operand).__name__ for operand in operands}

    def test(value: Any) -> str | None:
        if ("number" if is_number(value) else type(value).__name__) not in kinds:
            return "it is of another type than the rule expects"
        return "it is a forbidden value" if any(same(value, operand) for operand in operands) else None

    return test


def _matches(values: Operands) -> Test:
    try:
        expressions = [_expression(pattern) for pattern in _strings(values)]
    except BadExpression as error:
        raise BadRule(str(error)) from None

    def test(value: Any) -> str | None:
        if type(value) is not str:
            return "it is not a text"
        if len(value) > MAX_TEXT:
            return f"it is longer than {MAX_TEXT} characters"
        if any(expression.matches(value) for expression in expressions):
            return None
        return "it does not match the expected form"

    return test


def _contains(values: Operands) -> Test:
    parts = _strings(values)

    def test(value: Any) -> str | None:
        if type(value) is not str:
            return "it is not a text"
        return None if any(part in value for part in parts) else "it does not contain what it must"

    return test


def _max(values: Operands) -> Test:
    ceiling = _one_number(values)

    def test(value: Any) -> str | None:
        if not is_number(value):
            return "it is not a number"
        return None if value <= ceiling else f"it is more than {ceiling}"

    return test


def _min(values: Operands) -> Test:
    floor = _one_number(values)

    def test(value: Any) -> str | None:
        if not is_number(value):
            return "it is not a number"
        return None if value >= floor else f"it is less than {floor}"

    return test


def _max_length(values: Operands) -> Test:
    most = _one_number(values)
    if most < 0 or most != int(most):
        raise BadRule("a length is a whole number, 0 or more")

    def test(value: Any) -> str | None:
        if type(value) is not str:
            return "it is not a text"
        return None if len(value) <= most else f"it is longer than {int(most)} characters"

    return test


def _domain_test(values: Operands) -> Callable[[str], bool]:
    """Whether a canonical domain is one of the operands: `acme.test` itself, `*.acme.test` any name below it."""
    exact, below = set[str](), list[str]()
    for value in _strings(values):
        try:
            if value.startswith("*."):
                below.append("." + domain_of(value[2:]))
            else:
                exact.add(domain_of(value.removeprefix("@")))
        except BadAddress as error:
            raise BadRule(f"{value!r} is not a domain: {error}") from None
    suffixes = tuple(below)
    return lambda domain: domain in exact or (bool(suffixes) and domain.endswith(suffixes))


def _domain(values: Operands, wanted: bool) -> Test:
    listed = _domain_test(values)

    def test(value: Any) -> str | None:
        if type(value) is not str:
            return "it is not an e-mail address"
        try:
            for domain in _short_domains(value) if len(value) <= MAX_REMEMBERED else domains(value):
                if listed(domain) is not wanted:
                    return f"its domain {domain} is {'not allowed' if wanted else 'forbidden'}"
        except BadAddress as error:
            return str(error)
        return None

    return test


_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_PERCENT: Final = re.compile(r"%[0-9A-Fa-f]{2}")
_SPECIAL: Final = "/.\\~%$"


def clean_path(path: str) -> str:
    """A POSIX path with `.`, `..` and doubled slashes resolved, by its text alone: links are the upstream's to mind.

    BadRule for what programs expand or decode in different ways: control characters, backslashes, `~` in front, `$`,
    percent-encoding, schemes and drive letters, and characters that compatibility folding would turn into any of those.
    """
    if not path or len(path) > MAX_PATH:
        raise BadRule("it is empty or too long")
    if not path.isprintable() or "\\" in path or "$" in path:
        raise BadRule("it has control characters, a backslash or a dollar sign")
    if path.startswith("~") or _SCHEME.match(path) or _PERCENT.search(path):
        raise BadRule("it starts with ~ or a scheme, or is percent-encoded")
    if not path.isascii():
        folded = unicodedata.normalize("NFKC", path)
        if any(folded.count(character) != path.count(character) for character in _SPECIAL):
            raise BadRule("it has look-alikes of path characters")
    return posixpath.normpath(re.sub("/{2,}", "/", path))


def _path_within(values: Operands) -> Test:
    try:
        roots = tuple(clean_path(value) for value in _strings(values))
    except BadRule as error:
        raise BadRule(f"an operand is not a plain path: {error}") from None
    if any(root == ".." or root.startswith("../") for root in roots):
        raise BadRule("a relative directory must not lead upwards")

    def test(value: Any) -> str | None:
        if type(value) is not str:
            return "it is not a path"
        try:
            path = clean_path(value)
        except BadRule as error:
            return str(error)
        return None if any(within(path, root) for root in roots) else "it is outside the allowed directories"

    return test


def within(path: str, root: str) -> bool:
    """Whether a clean path is a clean root or lies below it. A relative path never lies in an absolute root."""
    if root == ".":
        return not path.startswith("/") and path != ".." and not path.startswith("../")
    return path == root or path.startswith(root if root == "/" else root + "/")


_SEPARATORS: Final = frozenset({"|", "||", "&&", ";", "&"})
_REDIRECTIONS: Final = frozenset({">", ">>", "<"})
_TOKEN: Final = re.compile(r"""[;&|<>]++|(?:[^ '"\\;&|<>]|'[^']*+'|"(?:[^"\\]|\\.)*+"|\\.)++""")
_META: Final = frozenset(";&|<>()$`{}\n\r\0!#")


def _command_in(values: Operands) -> Test:
    listed = _strings(values)
    operators = frozenset(value for value in listed if value in _SEPARATORS | _REDIRECTIONS)
    commands = tuple(tuple(value.split()) for value in listed if value not in operators)
    for command in commands:
        if not command or any(_META & set(word) or set(word) & set("\\'\"") for word in command):
            raise BadRule(
                f"{' '.join(command)!r} is not a plain command; of the shell's signs | || && ; & > >> < can be listed"
            )
    if not commands:
        raise BadRule("this operator takes one command or more")
    permitted = frozenset("".join(operators))

    def test(value: Any) -> str | None:
        if type(value) is not str:
            return "it is not a command line"
        if len(value) > MAX_COMMAND:
            return "it is too long"
        foreign = (_META & set(value)) - permitted
        if foreign or not value.isprintable():
            return "it has signs that a shell interprets, or control characters"
        return _check_line(value, commands, operators)

    return test


def _check_line(line: str, commands: tuple[tuple[str, ...], ...], operators: frozenset[str]) -> str | None:
    """Every simple command of a line must begin with the words of an allowed one, written plainly: a name put together
    from quotes or backslashes is none, since not every upstream reads it as a POSIX shell does."""
    simple: list[list[str]] = [[]]
    at, end = 0, len(line)
    while at < end:
        if line[at] == " ":
            at += 1
            continue
        token = _TOKEN.match(line, at)
        if token is None:
            return "its quotation marks do not match"
        at = token.end()
        word = token.group()
        if word[0] in ";&|<>" and word not in operators:
            return "it has signs that a shell interprets"
        if word in _SEPARATORS:
            simple.append([])
        else:
            simple[-1].append(word)
    for words in simple:
        if not any(tuple(words[: len(command)]) == command for command in commands):
            return "its command is not an allowed one"
    return None


def _nothing(values: Operands) -> Test:
    if values:
        raise BadRule("this operator takes no values")
    return lambda _: None


class Kind(msgspec.Struct, frozen=True):
    """`compile` makes the test; `demand` completes "the argument must ..." for people."""

    compile: Callable[[Operands], Test]
    demand: Callable[[Operands], str]


OPERATORS: Final[dict[Operator, Kind]] = {
    "equals": Kind(lambda v: _among(v, True), lambda v: f"be {_listed(v)}"),
    "not_equals": Kind(lambda v: _not_among(v, True), lambda v: f"not be {_listed(v)}"),
    "one_of": Kind(lambda v: _among(v, False), lambda v: f"be one of {_listed(v)}"),
    "not_one_of": Kind(lambda v: _not_among(v, False), lambda v: f"be none of {_listed(v)}"),
    "matches": Kind(_matches, lambda v: f"have the form {_listed(v)}"),
    "contains": Kind(_contains, lambda v: f"contain {_listed(v)}"),
    "max": Kind(_max, lambda v: f"be {_listed(v)} at most"),
    "min": Kind(_min, lambda v: f"be {_listed(v)} at least"),
    "max_length": Kind(_max_length, lambda v: f"have {_listed(v)} characters at most"),
    "domain_in": Kind(lambda v: _domain(v, True), lambda v: f"hold only addresses at {_listed(v)}"),
    "domain_not_in": Kind(lambda v: _domain(v, False), lambda v: f"hold no address at {_listed(v)}"),
    "path_within": Kind(_path_within, lambda v: f"lie within {_listed(v)}"),
    "command_in": Kind(_command_in, lambda v: f"use only the commands {_listed(v)}"),
    "present": Kind(_nothing, lambda _: "be given"),
    "absent": Kind(_nothing, lambda _: "not be given"),
}
