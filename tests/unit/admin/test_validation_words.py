"""Bodies become typed values, or a list of all that is wrong with them, in words, with the place of each."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenticmail_enterprise.admin_ui.api import OPERATIONS
from agenticmail_enterprise.admin_ui.paging import Moment, PageQuery
from agenticmail_enterprise.admin_ui.validate import MAX_FAULTS, convert, convert_query, decode, pointer
from agenticmail_enterprise.catalog.errors import InvalidJson, ValidationFailed
from agenticmail_enterprise.gateway.upstream_spec import UpstreamSpec

BODIES = [item.body for item in OPERATIONS if isinstance(item.body, type)]


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    size: Annotated[int, msgspec.Meta(ge=1, le=9)]


class Sample(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    name: Annotated[str, msgspec.Meta(min_length=2, max_length=5, pattern="^[a-z]*$", description="Lower case only.")]
    colour: Literal["red", "green"] = "red"
    flag: bool = False
    ratio: float = 0.5
    tags: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=2)] = ("x",)
    inner: Inner | None = None
    items: list[Inner] = []
    map: dict[Annotated[str, msgspec.Meta(max_length=3)], int] = {}
    mixed: str | int = ""
    until: Moment | msgspec.UnsetType | None = msgspec.UNSET


def faults(value: Any, kind: Any = Sample) -> dict[str, tuple[str, str]]:
    with pytest.raises(ValidationFailed) as caught:
        convert(value, kind)
    return {field["path"]: (field["code"], field["message"]) for field in caught.value.details["fields"]}


def test_a_good_body_becomes_its_type() -> None:
    value = {
        "name": "abc", "colour": "green", "flag": True, "ratio": 1, "tags": ["a"], "inner": {"size": 3},
        "items": [{"size": 1}], "map": {"a": 1}, "mixed": 5, "until": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    made = convert(value, Sample)
    assert (made.name, made.inner, made.items, made.mixed) == ("abc", Inner(3), [Inner(1)], 5)
    assert convert({"name": "abc", "inner": None, "until": None}, Sample).until is None


@pytest.mark.parametrize(
    ("change", "path", "code", "sentence"),
    [
        ({"name": 5}, "/name", "type", "This must be a text, not a whole number."),
        ({"name": None}, "/name", "type", "This must be a text, not null."),
        ({"name": "a"}, "/name", "too_short", "This must have at least 2 characters."),
        ({"name": "abcdef"}, "/name", "too_long", "This must have at most 5 characters."),
        ({"name": "ABC"}, "/name", "pattern", "Lower case only."),
        ({"colour": "blue"}, "/colour", "choice", "This must be one of: red, green."),
        ({"colour": 1}, "/colour", "type", "This must be a text, not a whole number."),
        ({"flag": "true"}, "/flag", "type", "This must be true or false, not a text."),
        ({"flag": 1}, "/flag", "type", "This must be true or false, not a whole number."),
        ({"ratio": "1"}, "/ratio", "type", "This must be a number, not a text."),
        ({"tags": "a"}, "/tags", "type", "This must be a list, not a text."),
        ({"tags": []}, "/tags", "too_short", "This must have at least 1 entries."),
        ({"tags": ["a", "b", "c"]}, "/tags", "too_long", "This must have at most 2 entries."),
        ({"tags": ["a", 1]}, "/tags/1", "type", "This must be a text, not a whole number."),
        ({"inner": []}, "/inner", "type", "This must be an object, not a list."),
        ({"inner": {}}, "/inner/size", "required", "This is required."),
        ({"inner": {"size": 0}}, "/inner/size", "range", "This must be >= 1."),
        ({"inner": {"size": 10}}, "/inner/size", "range", "This must be <= 9."),
        ({"inner": {"size": True}}, "/inner/size", "type", "This must be a whole number, not true or false."),
        ({"items": [{"siez": 1}]}, "/items/0/siez", "unknown_field", "There is no such field here. Did you mean size?"),
        ({"map": {"a": "b"}}, "/map/a", "type", "This must be a whole number, not a text."),
        ({"map": {"long": 1}}, "/map/long", "too_long", "This must have at most 3 characters."),
        ({"map": {"a/b~": 1}}, "/map/a~1b~0", "too_long", "This must have at most 3 characters."),
        ({"mixed": []}, "/mixed", "type", "This must be a whole number or a text, not a list."),
        ({"until": "yesterday"}, "/until", "format", ""),
        ({"until": "2026-01-01T00:00:00"}, "/until", "format", ""),
        ({"name": "ab\x07"}, "/name", "pattern", "Lower case only."),
        ({"mixed": "a\x00b"}, "/mixed", "control_character", "This holds a control character."),
    ],
)  # fmt: skip
def test_each_fault_has_its_place_code_and_sentence(change: Any, path: str, code: str, sentence: str) -> None:
    found = faults({"name": "abc", **change})
    assert found[path][0] == code
    assert found[path][1] == sentence or (not sentence and "2026" in found[path][1])


def test_all_faults_are_named_at_once() -> None:
    found = faults({"name": 1, "colour": "x", "inner": {"size": 99, "x": 1}, "items": [1, {}], "mapp": {}})
    assert set(found) == {"/name", "/colour", "/inner/size", "/inner/x", "/items/0", "/items/1/size", "/mapp"}


def test_a_book_of_faults_is_cut_short() -> None:
    assert len(faults({"name": "abc", "items": [1] * 10_000})) <= MAX_FAULTS


def test_no_sentence_speaks_of_the_inside() -> None:
    for value in (
        {},
        {"name": 1, "url": 5, "kind": "x", "timeout_ms": 1, "command": "sh -c x", "headers": [], "zzz": 1},
    ):
        for _, sentence in faults(value, UpstreamSpec).values():
            assert "`" not in sentence
            assert "$" not in sentence
            assert "regex" not in sentence


def test_query_texts_become_numbers() -> None:
    made = convert_query([("page", "3"), ("limit", "10")], PageQuery)
    assert (made.page, made.limit) == (3, 10)
    with pytest.raises(ValidationFailed):
        convert_query([("page", "3"), ("page", "4")], PageQuery)
    with pytest.raises(ValidationFailed):
        convert_query([("cursor", "a\0b")], PageQuery)


def test_pointers_escape_what_would_split_them() -> None:
    assert pointer("/a", "b/c~d") == "/a/b~1c~0d"


# -- JSON --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("raw", [b'{"a":1,"a":2}', b'[{"b":{"c":1,"d":2,"c":3}}]', b'{"a":1,"\\u0061":2}'])
def test_keys_named_twice_are_refused_however_they_are_written(raw: bytes) -> None:
    with pytest.raises(InvalidJson, match="twice"):
        decode(raw)


def test_depth_is_bounded_on_both_sides_of_the_bound() -> None:
    assert decode(b"[" * 60 + b"]" * 60)
    for depth in (66, 500, 5_000, 500_000):
        with pytest.raises(InvalidJson):
            decode(b"[" * depth + b"]" * depth)


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=20)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=12), inner, max_size=4)),
    max_leaves=12,
)


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(raw: bytes) -> None:
    try:
        decode(raw)
    except InvalidJson:
        return


@given(st.sampled_from(BODIES), values)
def test_no_value_breaks_a_conversion_and_every_fault_has_a_place_within_it(kind: Any, value: Any) -> None:
    check(kind, value)


@given(st.data())
def test_no_field_breaks_a_conversion(data: Any) -> None:
    kind = data.draw(st.sampled_from(BODIES))
    names = st.sampled_from([*kind.__struct_fields__, "other", "a/b"])
    check(kind, data.draw(st.dictionaries(names, values, max_size=6)))


def check(kind: Any, value: Any) -> None:
    try:
        made = convert(value, kind)
    except ValidationFailed as error:
        details = error.details
    else:
        assert isinstance(made, kind)
        return
    assert 1 <= len(details["fields"]) <= MAX_FAULTS
    for field in details["fields"]:
        assert field["path"] == "" or field["path"].startswith("/")
        assert field["message"]
        assert field["code"]
    json.dumps(details)
