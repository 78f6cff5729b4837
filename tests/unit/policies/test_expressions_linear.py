"""Our regular expressions: the same language as Python's `re` over what both know, without its worst case."""

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from agenticmail_enterprise.policies.expressions import MAX_TEXT, BadExpression, Expression


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("abc", ["abc"], ["ab", "abcd", "ABC"]),
        ("^abc$", ["abc"], ["abc\n"]),
        ("a.c", ["abc", "aéc"], ["a\nc", "ac"]),
        ("[a-c]+", ["a", "cab"], ["", "d"]),
        ("[^a-c]", ["d", "\n", "é"], ["a"]),
        ("[]a]+", ["]a"], ["b"]),
        ("[a-]", ["a", "-"], ["b"]),
        (r"[\d.]+", ["1.5"], ["x", "١"]),
        (r"\w+@(acme|foo)\.test", ["joe@foo.test"], ["joe@fooXtest", "joe@bar.test"]),
        ("(?:ab){2,3}", ["abab", "ababab"], ["ab", "abababab"]),
        ("a{2}", ["aa"], ["a", "aaa"]),
        ("a{2,}", ["aa", "aaaaa"], ["a"]),
        ("(a|)b", ["ab", "b"], ["a"]),
        ("(?i)Hello[x-z]", ["HELLOX", "helloz"], ["hello"]),
        (r"\x41\n\.", ["A\n."], ["A\n!"]),
        ("a+?b*?", ["a", "aab"], ["b"]),
        ("", [""], ["a"]),
        (r"cost: \$5", ["cost: $5"], ["cost: 5"]),
    ],
)
def test_what_matches(pattern, yes, no):
    expression = Expression(pattern)
    assert [text for text in yes if not expression.matches(text)] == []
    assert [text for text in no if expression.matches(text)] == []


@pytest.mark.parametrize(
    "pattern",
    [
        "(", ")", "a)", "[", "[a", "*a", "+", "?", "{2}", "a**", "a{3,2}", "a{999}", "a{x}", "a{", r"\1", r"\b", r"\p{L}", r"\xZ1",
        "(?=a)", "(?P<x>a)", "(?<!a)", "a^b", "a$b", "[z-a]", r"[a-\d]", "\\", "(" * 40 + ")" * 40, "x" * 1_001,
        "((a{100}){100}){100}", "(((((){255}){255}){255}){255})", r"\é",
    ],
)  # fmt: skip
def test_what_is_refused_with_a_reason(pattern):
    with pytest.raises(BadExpression) as caught:
        Expression(pattern)
    assert len(str(caught.value)) > 15


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("(a+)+b", "a" * MAX_TEXT),
        ("(a|a)*b", "a" * MAX_TEXT),
        ("(a|aa)+b", "a" * MAX_TEXT),
        (".*.*.*.*.*x", "a" * MAX_TEXT),
        ("(.*)*(.*)*(.*)*x", "a" * MAX_TEXT),
        ("(a*)*b", "a" * MAX_TEXT),
    ],
)
def test_what_stops_backtracking_engines_is_harmless(pattern, text):
    """Each of these would keep `re` busy for longer than the tests may run."""
    assert not Expression(pattern).matches(text)


def test_a_text_that_thrashes_the_cache_is_given_up_and_denied():
    """States of this automaton are all the subsets of 200 positions; a pseudo-random text visits a new one each time."""
    bits, text = 12_345, ""
    for _ in range(MAX_TEXT):
        bits = (bits * 1_103_515_245 + 12_345) & 0x7FFFFFFF
        text += "ab"[bits >> 16 & 1]
    expression = Expression(".*a.{200}")
    assert not expression.matches(text)
    assert expression.matches("a" + "b" * 200)


def test_texts_beyond_the_bound_never_match():
    assert Expression("a*").matches("a" * MAX_TEXT)
    assert not Expression("a*").matches("a" * (MAX_TEXT + 1))


ATOMS = st.sampled_from(["a", "b", "c", ".", "[ab]", "[^a]", r"\d", r"\w", "(?:ab)"])
PATTERNS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{0,2}", "{2}"])).map(lambda p: f"(?:{p[0]}){p[1]}"),
        st.lists(inner, max_size=3).map("".join),
        st.lists(inner, min_size=1, max_size=3).map(lambda p: f"({'|'.join(p)})"),
    ),
    max_leaves=6,
)


@given(PATTERNS, st.text("abc1\n_é", max_size=6))
def test_agrees_with_python(pattern, text):
    try:
        theirs = re.compile(pattern, re.ASCII)
    except re.error:
        assume(False)
    assert Expression(pattern).matches(text) is (theirs.fullmatch(text) is not None), pattern


@given(st.text(r"ab()[]{}*+?|\^$.-,1d", max_size=15))
def test_any_text_compiles_or_is_refused_and_never_means_more_than_in_python(pattern):
    try:
        ours = Expression(pattern)
        theirs = re.compile(pattern, re.ASCII)
    except (BadExpression, re.error):
        return
    for text in ("", "a", "b", "ab", "aa", "1", "[", "-", ",", "d"):
        assert ours.matches(text) is (theirs.fullmatch(text) is not None), (pattern, text)
