"""Globs over tool ids: what matches, that nothing else does, and that no id makes them slow."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenticmail_enterprise.policies.patterns import Patterns, compiled, translate

TEXT = st.text("ab*?.[", max_size=12)


@pytest.mark.parametrize(
    ("glob", "yes", "no"),
    [
        ("send_email", ["send_email"], ["send_emails", "Send_Email", "xsend_email", "send_email\n"]),
        ("send_*", ["send_", "send_email", "send_a\nb"], ["resend_x", "send"]),
        ("*_email", ["_email", "send_email"], ["email", "send_email2"]),
        ("a*b*c", ["abc", "aXbXc", "abbcc", "abcbc"], ["acb", "ab", "abcd"]),
        ("gh__?et", ["gh__get", "gh__set"], ["gh__et", "gh__geet"]),
        ("a[b]", ["a[b]"], ["ab"]),
        ("*", ["", "x", "a.b"], []),
        ("**x**", ["x", "axb"], ["", "a"]),
    ],
)
def test_globs_match_whole_ids_case_sensitively(glob, yes, no):
    patterns = Patterns((glob,))
    assert [name for name in yes if name not in patterns] == []
    assert [name for name in no if name in patterns] == []


def test_find_names_the_pattern_and_prefers_a_literal():
    patterns = Patterns(("exec*", "exec", "b?"))
    assert patterns.find("exec") == "exec"
    assert patterns.find("execute") == "exec*"
    assert patterns.find("bx") == "b?"
    assert patterns.find("c") is None
    assert not Patterns(())


def test_profiles_that_say_the_same_share_their_patterns():
    assert compiled(("a*", "b")) is compiled(("a*", "b"))


def by_hand(glob: str, name: str) -> bool:
    """The textbook definition, exponential and obviously right."""
    if not glob:
        return not name
    if glob[0] == "*":
        return by_hand(glob[1:], name) or (bool(name) and by_hand(glob, name[1:]))
    return bool(name) and glob[0] in ("?", name[0]) and by_hand(glob[1:], name[1:])


@given(TEXT, TEXT)
def test_no_match_is_lost_by_never_giving_back(glob, name):
    assert (re.fullmatch(translate(glob), name) is not None) is by_hand(glob, name)
    assert (name in Patterns((glob,))) is by_hand(glob, name)


def test_many_stars_against_a_long_id_do_not_backtrack():
    """With a backtracking translation (`.*a.*a...`) this would not end within the age of the universe."""
    assert "a" * 2_000 not in Patterns(("*a" * 60 + "b",))
