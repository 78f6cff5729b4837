"""What each operator lets pass and what it refuses, wrong types and tricks included."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenticmail_enterprise.policies.operators import OPERATORS, BadRule, clean_path, within


def passes(op, values, value) -> bool:
    return OPERATORS[op].compile(values)(value) is None


@pytest.mark.parametrize(
    ("op", "values", "good", "bad"),
    [
        ("equals", ("a",), ["a"], ["b", "A", 1, None, {"a": 1}, ["a"], True]),
        ("equals", (1,), [1, 1.0], [True, "1", 2]),
        ("equals", (True,), [True], [1, "true", False]),
        ("not_equals", ("a",), ["b"], ["a", 1, None, {}, True]),
        ("not_equals", (1,), [2, 0.5], [1, 1.0, True, "2"]),
        ("one_of", ("a", 2, False), ["a", 2, False], ["b", 0, True, None]),
        ("not_one_of", ("a", "b"), ["c"], ["a", "b", 1, None, {}]),
        ("matches", ("[a-z]+", r"\d"), ["abc", "7"], ["ABC", "77", 7, None, "a\n", "a" * 5_000]),
        ("contains", ("foo",), ["xfoox"], ["bar", 5, ["foo"], None]),
        ("max", (100,), [100, -5, 99.9, 0], [101, 100.01, True, "5", None, float("inf"), float("nan"), 10**400, {}, "9" * 9_000]),
        ("min", (1.5,), [1.5, 2, 10**400], [1, False, "2", float("-inf"), float("nan")]),
        ("max_length", (3,), ["", "abc", "äöü"], ["abcd", 5, None, {}]),
        ("domain_in", ("acme.test", "*.dev.test"), ["a@acme.test", "a@x.dev.test", "a@acme.test, b@y.z.dev.test"],
         ["a@evil.test", "a@acme.test, b@evil.test", "a@dev.test", "a@xacme.test", "a@sub.acme.test", "acme.test", 5, None, {}, ""]),
        ("domain_not_in", ("evil.test", "*.evil.test"), ["a@acme.test"],
         ["a@evil.test", "a@EVIL.test.", "a@x.evil.test", "a@acme.test,b@evil.test", "not an address", 5, {}]),
        ("path_within", ("/work", "/tmp/x/"), ["/work", "/work/a", "/work/./a//b/../c", "/tmp/x/y", "//work/a"],
         ["/workshop", "/", "/work/../etc/passwd", "/work/a/../../etc", "work/a", "/WORK/a", "/tmp", "", ".", "..", 5, None]),
        ("path_within", ("/work",),
         [], ["/work/\0", "/work/a\n", "/work\\..\\etc", "/work/%2e%2e/etc", "/work/%2E/x", "~/x", "~root/x", "file:///work/a",
              "C:/work/a", "/work/$HOME", "/work/${X}", "/work/．．/etc", "/work／../etc", "/work/․․/x", "/work/" + "a" * 5_000]),
        ("path_within", (".",), ["a", "./a", "a/../b"], ["..", "../a", "a/../../b", "/a"]),
        ("path_within", ("out",), ["out", "out/a"], ["outer", "out/../x", "/out"]),
        ("command_in", ("git", "ls"), ["git status", "ls", "  ls -la 'my file'", 'git commit -m "a b"', "git log --format=%H"],
         ["rm -rf /", "gitk", "/usr/bin/git", "./git", "GIT", "", " ", "X=1 git", "git; rm x", "git && rm", "git | sh", "git > x",
          "git $(rm x)", "git `rm x`", "git\nrm x", "git\r\nrm", "git & rm", "git 'x; y'", "git\0", "g''it x", "g\\it x", '"git" x',
          "git 'unclosed", "git x \\", "git ${x}", "git {a,b}", "git #x", "(git)", "!git", "git <(x)", 5, None, ["git"]]),
        ("command_in", ("git status", "git log"), ["git status", "git  status -s", "git log"], ["git push", "git", "git statusx"]),
        ("command_in", ("git", "grep", "|", ">"), ["git log | grep 'a b'", "git log > out", "git log | grep x > y"],
         ["git log | rm", "git log || grep x", "git log |& grep x", "| git", "git |", "git ; git", "git log >> x", "> git x",
          "git log | 'grep' x", "git log 2>&1"]),
    ],
)  # fmt: skip
def test_operators(op, values, good, bad):
    assert [value for value in good if not passes(op, values, value)] == []
    assert [value for value in bad if passes(op, values, value)] == []


@pytest.mark.parametrize(
    ("op", "values"),
    [
        ("equals", ()), ("equals", ("a", "b")), ("not_equals", ()), ("one_of", ()), ("max", ()), ("max", ("5",)), ("max", (True,)),
        ("max", (1, 2)), ("max", (float("inf"),)), ("min", (float("nan"),)), ("max_length", (-1,)), ("max_length", (1.5,)),
        ("matches", ()), ("matches", ("(",)), ("matches", (5,)), ("matches", (r"(a)\1",)), ("contains", ("",)),
        ("domain_in", ()), ("domain_in", ("not a domain",)), ("domain_in", ("a@b.test",)), ("domain_in", ("*",)), ("domain_in", ("a.*.b",)),
        ("path_within", ()), ("path_within", ("~/x",)), ("path_within", ("../x",)), ("path_within", ("..",)), ("path_within", ("/a%2fb",)),
        ("command_in", ()), ("command_in", ("|",)), ("command_in", ("git;",)), ("command_in", ("$",)), ("command_in", ("'git'",)),
        ("command_in", (" ",)), ("present", ("x",)), ("absent", (1,)), ("one_of", (float("nan"),)),
    ],
)  # fmt: skip
def test_operands_that_make_no_rule(op, values):
    with pytest.raises(BadRule) as caught:
        OPERATORS[op].compile(values)
    assert len(str(caught.value)) > 15


def test_every_operator_says_what_it_demands():
    for kind in OPERATORS.values():
        assert kind.demand((1,)).startswith(("be ", "not ", "have ", "contain ", "hold ", "lie ", "use "))


@given(st.text("/.ab~ %", max_size=20), st.sampled_from(["/", "/a", "/a/b", ".", "a"]))
def test_within_agrees_with_walking_the_path_step_by_step(text, root):
    try:
        path = clean_path(text)
    except BadRule:
        return

    def walk(raw: str) -> list[str] | None:
        at: list[str] = []
        for part in raw.split("/"):
            if part == "..":
                if not at and not raw.startswith("/"):
                    return None
                del at[-1:]
            elif part not in ("", "."):
                at.append(part)
        return at

    here, there = walk(text), walk(root)
    same_kind = text.startswith("/") is root.startswith("/")
    assert within(path, root) is (same_kind and here is not None and here[: len(there)] == there)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=8)


@given(SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(st.text(max_size=2), SCALARS, max_size=2))
def test_no_value_breaks_a_test_and_odd_types_never_pass(value):
    for op, values in {
        "equals": ("a",), "not_equals": ("a",), "one_of": ("a",), "not_one_of": ("a",), "matches": (".*",), "contains": ("a",),
        "max": (1e308,), "min": (-1e308,), "max_length": (9,), "domain_in": ("a.test",), "domain_not_in": ("a.test",),
        "path_within": ("/",), "command_in": ("a",),
    }.items():  # fmt: skip
        problem = OPERATORS[op].compile(values)(value)
        if isinstance(value, dict | list) or value is None or isinstance(value, bool):
            assert problem is not None, op
