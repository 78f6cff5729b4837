r"""Paths into a call's arguments: `to`, `message.recipients`, `items[*].price`, `headers.*`.

    path  = step *( "." key / "." "*" / "[*]" )      the first step without its dot
    key   = 1*( any character but . [ ] * \ / "\" any character )

`*` and `[*]` visit every element of a list or every value of an object. A list met on the way or at the end is visited
element by element as well, so that `to` covers `"a"` and `["a", "b"]` alike. A backslash takes the next character as it
is: `a\.b` is the key "a.b", `\*` the key "*".

Anything that cannot be what the path expects (a string where an object belongs, null inside a list) is a `Surprise`:
the upstream may read it in a way the rule does not see, so the rule denies.
"""

from __future__ import annotations

from typing import Any, Final

EVERY: Final = 0
"""A step that visits all; every other step is a key."""

Step = str | int
MAX_STEPS: Final = 32


class Surprise(Exception):
    """The arguments have a shape in which this path cannot be followed."""


class Found:
    """What a path leads to. `missing` counts the places where the key is absent; `nulls` where it is null."""

    __slots__ = ("missing", "nulls", "values")

    def __init__(self) -> None:
        self.values: list[Any] = []
        self.missing = 0
        self.nulls = 0


def parse(path: str) -> tuple[Step, ...]:
    """The steps of a path. ValueError says what is wrong and where."""
    steps: list[Step] = []
    at = 0
    while at < len(path):
        if path.startswith("[*]", at):
            steps.append(EVERY)
            at += 3
        else:
            key, at = _key(path, at)
            steps.append(key)
        if at < len(path):
            if path[at] == ".":
                at += 1
                if at == len(path) or path[at] == "[":
                    raise ValueError(f"a key must follow the dot at {at}")
            elif path[at] != "[":
                raise ValueError(f"expected '.' or '[*]' at {at}")
    if not steps:
        raise ValueError("a path needs one step at least")
    if len(steps) > MAX_STEPS:
        raise ValueError(f"a path has at most {MAX_STEPS} steps")
    return tuple(steps)


def _key(path: str, at: int) -> tuple[Step, int]:
    if path[at] == "*" and (at + 1 == len(path) or path[at + 1] in ".["):
        return EVERY, at + 1
    key = ""
    while at < len(path) and path[at] not in ".[":
        if path[at] in "]*":
            raise ValueError(f"{path[at]!r} at {at} needs a backslash, or is out of place")
        if path[at] == "\\":
            at += 1
            if at == len(path):
                raise ValueError("the path ends in a backslash")
        key += path[at]
        at += 1
    if not key:
        raise ValueError(f"an empty key at {at}")
    return key, at


def find(args: dict[str, Any], steps: tuple[Step, ...], *, flatten: bool = True) -> Found:
    """Follow a path. `flatten`: a list at the end stands for its elements. Raises Surprise."""
    found = Found()
    _walk(args, steps, 0, found, flatten, False)
    return found


def _walk(value: Any, steps: tuple[Step, ...], at: int, found: Found, flatten: bool, listed: bool) -> None:
    if at == len(steps):
        _arrive(value, found, flatten, listed)
        return
    step = steps[at]
    if value is None:
        if listed:
            raise Surprise("null stands where an object belongs")
        found.missing += 1
    elif type(value) is list:
        onward = at + 1 if step == EVERY else at
        for element in value:
            _walk(element, steps, onward, found, flatten, True)
        found.missing += not value
    elif type(value) is not dict:
        raise Surprise(f"a {_kind(value)} stands where an object belongs")
    elif step == EVERY:
        for element in value.values():
            _walk(element, steps, at + 1, found, flatten, True)
        found.missing += not value
    elif step in value:
        _walk(value[step], steps, at + 1, found, flatten, False)
    else:
        found.missing += 1


def _arrive(value: Any, found: Found, flatten: bool, listed: bool) -> None:
    if value is None:
        if listed and flatten:
            raise Surprise("null stands where a value belongs")
        found.nulls += 1
    elif flatten and type(value) is list:
        for element in value:
            _arrive(element, found, True, True)
        found.missing += not value
    else:
        found.values.append(value)


def _kind(value: Any) -> str:
    names = {str: "string", bool: "boolean", int: "number", float: "number", dict: "object", list: "list"}
    return names.get(type(value), "value")
