"""One value, one form; and a form from which nothing can hide."""

from __future__ import annotations

import base64
import json
import math
import re
import struct
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenticmail_enterprise.gateway.approvals.canonical import MAX_EXACT, NotCanonical, canonical, number
from agenticmail_enterprise.gateway.approvals.form import attachments, differences, drawn

# RFC 8785, appendix B
NUMBERS = {
    "0000000000000000": "0", "8000000000000000": "0", "0000000000000001": "5e-324", "8000000000000001": "-5e-324",
    "7fefffffffffffff": "1.7976931348623157e+308", "ffefffffffffffff": "-1.7976931348623157e+308",
    "4340000000000000": "9007199254740992", "c340000000000000": "-9007199254740992",
    "4430000000000000": "295147905179352830000", "44b52d02c7e14af5": "9.999999999999997e+22",
    "44b52d02c7e14af6": "1e+23", "44b52d02c7e14af7": "1.0000000000000001e+23", "444b1ae4d6e2ef4e": "999999999999999700000",
    "444b1ae4d6e2ef4f": "999999999999999900000", "444b1ae4d6e2ef50": "1e+21", "3eb0c6f7a0b5ed8c": "9.999999999999997e-7",
    "3eb0c6f7a0b5ed8d": "0.000001", "41b3de4355555553": "333333333.3333332", "41b3de4355555554": "333333333.33333325",
    "41b3de4355555555": "333333333.3333333", "41b3de4355555556": "333333333.3333334", "41b3de4355555557": "333333333.33333343",
    "becbf647612f3696": "-0.0000033333333333333333", "43143ff3c1cb0959": "1424953923781206.2",
}  # fmt: skip


@pytest.mark.parametrize("bits", NUMBERS)
def test_numbers_are_written_as_the_rfc_says(bits: str) -> None:
    assert number(struct.unpack(">d", bytes.fromhex(bits))[0]) == NUMBERS[bits]


def test_the_rfcs_example_is_written_as_the_rfc_says() -> None:
    text = r'{"numbers":[333333333.33333329,1E30,4.50,2e-3,0.000000000000000000000000001],"string":"\u20ac$\u000F\u000aA\u0027\u0042\u0022\u005c\\\"\/","literals":[null,true,false]}'
    assert canonical(json.loads(text)).decode() == (
        r'{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],"string":"€$\u000f\nA'
        + r"'B\"\\\\\"/"
        + '"}'
    )


def test_keys_are_sorted_by_utf_16_code_units() -> None:
    keys = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"]
    assert list(json.loads(canonical(dict.fromkeys(keys, 0)))) == [
        "\r",
        "1",
        "\u0080",
        "\u00f6",
        "\u20ac",
        "\U0001f600",
        "\ufb33",
    ]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-MAX_EXACT, MAX_EXACT) | st.floats(allow_nan=False, allow_infinity=False).filter(lambda x: not MAX_EXACT < abs(x) < 1e21)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(VALUES)
def test_a_form_reads_back_as_the_same_value_and_has_itself_as_its_form(value: object) -> None:
    read = json.loads(canonical(value))
    assert read == value
    assert canonical(read) == canonical(value)


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, 2**53, 2.0**53, -(2**60), "\ud800", {1: 2}, object(), [[[]]] * 1 + [b""]],
    ids=lambda value: repr(value).partition(" object at ")[0],
)
def test_what_has_no_single_meaning_has_no_form(value: object) -> None:
    with pytest.raises(NotCanonical):
        canonical(value)


def undrawn(text: str) -> str:
    return re.sub(r"⟦U\+([0-9A-F]{4,6})(?: [^⟧]*)?⟧", lambda match: chr(int(match[1], 16)), text)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_drawing_hides_nothing_and_can_be_undone(text: str) -> None:
    shown = drawn(text)
    assert undrawn(shown) == text
    assert all(
        char in "\n\t" or unicodedata.category(char) not in {"Cc", "Cf", "Co", "Cn", "Zl", "Zp"} for char in shown
    )


@pytest.mark.parametrize(
    "char", ["\u202e", "\u200b", "\u2066", "\ufeff", "\u00ad", "\U000e0041", "\u3164", "\u00a0", "\ufe0f", "\r", "\x1b"]
)
def test_what_cannot_be_seen_is_drawn(char: str) -> None:
    assert (
        drawn(f"a{char}b")
        == f"a⟦U+{ord(char):04X}{' ' + unicodedata.name(char) if unicodedata.name(char, '') else ''}⟧b"
    )


def test_attachments_are_listed_with_the_size_and_hash_of_what_they_hold() -> None:
    content = base64.b64encode(b"hello").decode()
    (one,) = attachments(
        {"mail": {"attachments": [{"filename": "a\u202etxt.exe", "contentType": "text/plain", "content": content}]}}
    )
    assert (one.path, one.size, one.type) == ("/mail/attachments/0", 5, "text/plain")
    assert one.sha256 == "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    assert "RIGHT-TO-LEFT" in one.name


def test_differences_are_found_as_deep_down_as_they_are() -> None:
    before = {"to": ["a", "b"], "deep": {"x": 1, "gone": True}, "n": 1}
    after = {"to": ["a", "c"], "deep": {"x": 1, "a/b": 2}, "n": 1.0}
    assert [one.path for one in differences(before, after)] == ["/deep/a~1b", "/deep/gone", "/to/1"]
