"""From JSON to typed structs, with every fault of a body named: its place (JSON Pointer), a code, a sentence.

msgspec stops at the first fault and speaks of Python; here a value is walked along its type, each leaf is converted by
msgspec itself, and its message is put into words for the person who sent the body. A last conversion of the whole value
is the authority: nothing passes here that msgspec would not take.
"""

from __future__ import annotations

import difflib
import json
import re
import types
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal, TypeVar, Union, get_args, get_origin

import msgspec

from ..catalog.errors import FieldError, InvalidJson, ValidationFailed

MAX_FAULTS: Final = 100
"""Faults named of one body. A person mends a few at a time; a program that sends garbage needs no book about it."""

MAX_DEPTH: Final = 64
S = TypeVar("S")

_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
"""Control characters but tab, line feed and carriage return: in no text of ours, and NUL in no database of ours."""

NAMES: Final = {
    "str": "a text", "int": "a whole number", "float": "a number", "bool": "true or false", "object": "an object",
    "array": "a list", "null": "null", "datetime": "a time (RFC 3339, such as 2026-11-22T10:00:00Z)",
}  # fmt: skip
"""msgspec's names of types, in words."""


def decode(body: bytes) -> Any:
    """The JSON value of a body. InvalidJson: empty, not UTF-8, malformed, too deep, or a key named twice."""
    if not body.strip():
        raise InvalidJson("The body is empty; a JSON object is expected.")
    try:
        value = msgspec.json.decode(body)
        _refuse_doubled_keys(body)
    except RecursionError:
        raise InvalidJson("The body is nested too deeply.") from None
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise InvalidJson(f"The body is not valid JSON: {error}.") from None
    if _deeper(value, MAX_DEPTH):
        raise InvalidJson(f"The body is nested more than {MAX_DEPTH} levels deep.")
    return value


def _refuse_doubled_keys(body: bytes) -> None:
    """Two readers of such an object may each take another of the values."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) != len(pairs):
            names = [name for name, _ in pairs]
            doubled = next(name for place, name in enumerate(names) if name in names[:place])
            raise InvalidJson(f"An object names the key {doubled!r} twice.", key=doubled)
        return members

    json.loads(body, object_pairs_hook=unique)


def _deeper(value: Any, levels: int) -> bool:
    if isinstance(value, dict):
        return levels == 0 or any(_deeper(item, levels - 1) for item in value.values())
    if isinstance(value, list):
        return levels == 0 or any(_deeper(item, levels - 1) for item in value)
    return False


def convert(value: Any, kind: type[S]) -> S:
    """`value` as `kind`. ValidationFailed with all faults (at most `MAX_FAULTS`) when it does not fit."""
    faults: list[FieldError] = []
    _walk(value, kind, "", faults)
    _look_for_control(value, "", faults)
    if not faults:
        try:
            return msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            faults.append(_of_message(str(error)))
    raise ValidationFailed(faults[:MAX_FAULTS])


def convert_query(pairs: list[tuple[str, str]], kind: type[S]) -> S:
    """Query parameters as `kind` (texts become numbers and booleans). ValidationFailed with all faults."""
    faults: list[FieldError] = []
    names = [name for name, _ in pairs]
    faults += [
        (pointer("", name), "duplicate", f"The parameter {name} is given more than once.")
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    ]
    value = dict(pairs)
    _walk(value, kind, "", faults, strict=False)
    _look_for_control(value, "", faults)
    if faults:
        raise ValidationFailed(faults[:MAX_FAULTS])
    try:
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as error:
        raise ValidationFailed([_of_message(str(error))]) from None


def pointer(path: str, part: str | int) -> str:
    """A JSON Pointer (RFC 6901) one step further."""
    return f"{path}/{str(part).replace('~', '~0').replace('/', '~1')}"


# -- the walk ----------------------------------------------------------------------------------------------------
def _walk(value: Any, kind: Any, path: str, faults: list[FieldError], *, strict: bool = True) -> None:
    """Add what is wrong with `value` as `kind` to `faults`."""
    if len(faults) >= MAX_FAULTS:
        return
    bare, metas = _parts(kind)
    origin = get_origin(bare)
    if origin in {Union, types.UnionType}:
        members = [member for member in get_args(bare) if member is not msgspec.UnsetType]
        if value is None and type(None) in members:
            return
        members = [member for member in members if member is not type(None)]
        if len(members) == 1:
            _walk(value, members[0], path, faults, strict=strict)
            return
    if isinstance(bare, type) and issubclass(bare, msgspec.Struct):
        _walk_struct(value, bare, path, faults, strict=strict)
    elif origin in {tuple, list} and isinstance(value, list):
        _check_length(value, metas, path, faults)
        for place, item in enumerate(value):
            _walk(item, get_args(bare)[0], pointer(path, place), faults, strict=strict)
    elif origin is dict and isinstance(value, dict):
        _check_length(value, metas, path, faults)
        for name, item in value.items():
            _leaf(name, get_args(bare)[0], pointer(path, name), faults, strict=True)
            _walk(item, get_args(bare)[1], pointer(path, name), faults, strict=strict)
    else:
        _leaf(value, kind, path, faults, strict=strict)


def _walk_struct(value: Any, kind: type[msgspec.Struct], path: str, faults: list[FieldError], *, strict: bool) -> None:
    if not isinstance(value, dict):
        faults.append((path, "type", f"This must be an object, not {_name_of(value)}."))
        return
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    for name, field in fields.items():
        if name in value:
            _walk(value[name], field.type, pointer(path, name), faults, strict=strict)
        elif field.required:
            faults.append((pointer(path, name), "required", "This is required."))
    for name in value:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, 1)
            hint = f" Did you mean {near[0]}?" if near else f" Known are: {', '.join(fields)}."
            faults.append((pointer(path, name), "unknown_field", f"There is no such field here.{hint}"))


def _parts(kind: Any) -> tuple[Any, list[msgspec.Meta]]:
    """A type without its annotations, and those of msgspec among them."""
    if get_origin(kind) is not Annotated:
        return kind, []
    bare, *notes = get_args(kind)
    return bare, [note for note in notes if isinstance(note, msgspec.Meta)]


def _check_length(
    value: list[Any] | dict[str, Any], metas: list[msgspec.Meta], path: str, faults: list[FieldError]
) -> None:
    for meta in metas:
        if meta.min_length is not None and len(value) < meta.min_length:
            faults.append((path, "too_short", f"This must have at least {meta.min_length} entries."))
        if meta.max_length is not None and len(value) > meta.max_length:
            faults.append((path, "too_long", f"This must have at most {meta.max_length} entries."))


def _leaf(value: Any, kind: Any, path: str, faults: list[FieldError], *, strict: bool) -> None:
    try:
        msgspec.convert(value, kind, strict=strict)
    except msgspec.ValidationError as error:
        code, sentence = _in_words(str(error), kind)
        described = [meta.description for meta in _parts(kind)[1] if meta.description]
        faults.append((path, code, described[-1] if described and code == "pattern" else sentence))


def _look_for_control(value: Any, path: str, faults: list[FieldError]) -> None:
    if len(faults) >= MAX_FAULTS:
        return
    if isinstance(value, str) and _CONTROL.search(value):
        if all(place != path for place, _, _ in faults):
            faults.append((path, "control_character", "This holds a control character."))
    elif isinstance(value, dict):
        for name, item in value.items():
            if _CONTROL.search(name):
                faults.append((pointer(path, name), "control_character", "The name holds a control character."))
            _look_for_control(item, pointer(path, name), faults)
    elif isinstance(value, list):
        for place, item in enumerate(value):
            _look_for_control(item, pointer(path, place), faults)


# -- msgspec's sentences, in words -------------------------------------------------------------------------------
def _typed(match: re.Match[str], kind: Any) -> str:
    wanted = [NAMES.get(name, name) for name in match[1].split(" | ")]
    return f"This must be {' or '.join(wanted)}, not {NAMES.get(match[2], match[2])}."


def _choices(match: re.Match[str], kind: Any) -> str:
    bare = _parts(kind)[0]
    options = get_args(bare) if get_origin(bare) is Literal else ()
    return f"This must be one of: {', '.join(str(option) or '(empty)' for option in options)}."


Words = Callable[[re.Match[str], Any], str]

_RULES: Final[tuple[tuple[re.Pattern[str], str, Words], ...]] = (
    (re.compile(r"Expected `([^`]+)`, got `([^`]+)`"), "type", _typed),
    (re.compile(r"Invalid enum value"), "choice", _choices),
    (
        re.compile(r"of length >= (\d+)"),
        "too_short",
        lambda match, _: f"This must have at least {match[1]} characters.",
    ),
    (re.compile(r"of length <= (\d+)"), "too_long", lambda match, _: f"This must have at most {match[1]} characters."),
    (re.compile(r"matching regex"), "pattern", lambda match, _: "This does not have the expected form."),
    (re.compile(r"` (>=?|<=?) (-?[\d.]+)"), "range", lambda match, _: f"This must be {match[1]} {match[2]}."),
    (re.compile(r"RFC ?3339|timezone"), "format", lambda match, _: f"This must be {NAMES['datetime']}, with a zone."),
    (re.compile(r"out of range"), "range", lambda match, _: "This number is out of range."),
)


def _in_words(message: str, kind: Any) -> tuple[str, str]:
    """(code, sentence) for a message of msgspec's."""
    message = message.partition(" - at `$")[0]
    for pattern, code, words in _RULES:
        match = pattern.search(message)
        if match is not None:
            return code, words(match, kind)
    return "invalid", f"{message.rstrip('.')}."


def _of_message(message: str) -> FieldError:
    """A fault from a message alone, its place read from the end of it."""
    _, _, where = message.partition(" - at `$")
    path = re.sub(r"\[(\d+|\.\.\.)\]", r".\1", where.rstrip("`")).replace(".", "/")
    return (path, *_in_words(message, None))


def _name_of(value: Any) -> str:
    if value is None:
        return "null"
    kinds: dict[type, str] = {bool: "bool", int: "int", float: "float", str: "str", list: "array", dict: "object"}
    return NAMES[kinds.get(type(value), "object")]
