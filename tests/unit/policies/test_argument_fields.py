"""Paths into arguments: what they find, and the shapes they refuse to guess about."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenticmail_enterprise.policies.fields import EVERY, Surprise, find, parse


@pytest.mark.parametrize(
    ("path", "steps"),
    [
        ("to", ("to",)),
        ("message.recipients", ("message", "recipients")),
        ("items[*].price", ("items", EVERY, "price")),
        ("items.*.price", ("items", EVERY, "price")),
        ("[*]", (EVERY,)),
        ("*", (EVERY,)),
        ("a[*][*]", ("a", EVERY, EVERY)),
        (r"a\.b", ("a.b",)),
        (r"a\[\*\]", ("a[*]",)),
        (r"\*", ("*",)),
        (r"back\\slash", ("back\\slash",)),
        ("Empfänger", ("Empfänger",)),
    ],
)
def test_paths_that_parse(path, steps):
    assert parse(path) == steps


@pytest.mark.parametrize(
    "path", ["", ".", "a.", ".a", "a..b", "a[", "a[0]", "a]", "a*b", "a.[*]", "a[*]b", "a\\", ".".join("a" * 33)]
)
def test_paths_that_do_not(path):
    with pytest.raises(ValueError, match="."):
        parse(path)


@pytest.mark.parametrize(
    ("args", "path", "values", "missing"),
    [
        ({"to": "a"}, "to", ["a"], 0),
        ({"to": ["a", "b"]}, "to", ["a", "b"], 0),
        ({"to": [["a"], ["b", ["c"]]]}, "to", ["a", "b", "c"], 0),
        ({}, "to", [], 1),
        ({"to": []}, "to", [], 1),
        ({"m": {"to": "a"}}, "m.to", ["a"], 0),
        ({"m": [{"to": "a"}, {"to": ["b"]}]}, "m.to", ["a", "b"], 0),
        ({"m": [{"to": "a"}, {}]}, "m.to", ["a"], 1),
        ({"m": None}, "m.to", [], 1),
        ({"h": {"a": "1", "b": "2"}}, "h.*", ["1", "2"], 0),
        ({"i": [{"p": 1}, {"p": 2}]}, "i[*].p", [1, 2], 0),
        ({"a": 1, "b": [2]}, "*", [1, 2], 0),
        ({"a.b": 1}, r"a\.b", [1], 0),
        ({"to": {"x": 1}}, "to", [{"x": 1}], 0),
    ],
)
def test_what_is_found(args, path, values, missing):
    found = find(args, parse(path))
    assert (found.values, found.missing) == (values, missing)


@pytest.mark.parametrize(
    ("args", "path"),
    [
        ({"m": "a@evil.test"}, "m.to"),
        ({"m": 5}, "m.to"),
        ({"m": True}, "m.to"),
        ({"m": ["a@evil.test"]}, "m.to"),
        ({"m": [{"to": "a"}, None]}, "m.to"),
        ({"to": ["a", None]}, "to"),
        ({"i": "x"}, "i[*]"),
        ({"h": {"a": None}}, "h.*"),
    ],
)
def test_surprises(args, path):
    with pytest.raises(Surprise):
        find(args, parse(path))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from("abc"), JSON, max_size=3), st.sampled_from(["a", "a.b", "a[*].b", "*", "a.*.c"]))
def test_a_path_finds_or_refuses_and_never_breaks(args, path):
    try:
        found = find(args, parse(path))
    except Surprise:
        return
    assert not any(value is None or isinstance(value, list) for value in found.values)
    assert found.values or found.missing or found.nulls
