r"""Regular expressions without a worst case: parsed here, run as a lazily built automaton, linear in the text.

Python's `re` backtracks: `(a+)+b`, or merely `.*.*.*x`, on a text of the agent's choosing stops the gateway for
hours, and nothing can interrupt it. RE2 has the cure; this is its idea in the small, for the whole-text match that
a rule needs.

Grammar: literals, `.` (any but a line break), `[a-z]`, `[^a-z]`, `|`, `( )`, `(?: )`, `* + ? {m} {m,} {m,n}`, and
the escapes `\d \w \s \D \W \S` (ASCII), `\n \r \t \f \v \xHH` and any punctuation. `(?i)` in front ignores ASCII
case. The whole text must match, so a leading `^` and a trailing `$` mean nothing and are dropped. References,
look-around and `\b` are refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

MAX_PATTERN: Final = 1_000
MAX_TEXT: Final = 4_096
MAX_STATES: Final = 1_000
MAX_REPEAT: Final = 255
MAX_DEPTH: Final = 32
MAX_TRANSITIONS: Final = 2_048
"""Entries of the automaton's cache; past it the cache starts afresh, so memory is bounded whatever is matched."""

MAX_WORK: Final = 100_000
"""States looked at in one match outside the cache (some 20 ms). A text built to thrash the cache does not match."""

_LAST: Final = 0x10FFFF
Ranges = tuple[tuple[int, int], ...]

_CLASSES: Final[dict[str, Ranges]] = {
    "d": ((0x30, 0x39),),
    "w": ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)),
    "s": ((0x09, 0x0D), (0x20, 0x20)),
}
_CONTROLS: Final = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v"}


class Node:
    """A piece of syntax. `kind`: "set" (one character of `ranges`), "cat" and "alt" (of `parts`), "rep" (of `parts[0]`,
    from `least` to `most` times, None without end)."""

    __slots__ = ("kind", "least", "most", "parts", "ranges")

    def __init__(
        self, kind: str, parts: list[Node] | None = None, ranges: Ranges = (), least: int = 0, most: int | None = None
    ) -> None:
        self.kind = kind
        self.parts = parts or []
        self.ranges = ranges
        self.least = least
        self.most = most


class BadExpression(ValueError):
    """The expression cannot be compiled; the message says why and where."""


def _negated(ranges: Iterable[tuple[int, int]]) -> Ranges:
    out, start = [], 0
    for low, high in sorted(ranges):
        if low > start:
            out.append((start, low - 1))
        start = max(start, high + 1)
    if start <= _LAST:
        out.append((start, _LAST))
    return tuple(out)


def _folded(ranges: Ranges) -> Ranges:
    """With the other case of every ASCII letter in them."""
    out = list(ranges)
    for low, high in ranges:
        for first, last, shift in ((0x41, 0x5A, 32), (0x61, 0x7A, -32)):
            a, b = max(low, first), min(high, last)
            if a <= b:
                out.append((a + shift, b + shift))
    return tuple(out)


class _Parser:
    def __init__(self, pattern: str) -> None:
        self.fold = pattern.startswith("(?i)")
        self.text = pattern[4:] if self.fold else pattern
        self.text = self.text.removeprefix("^")
        if self.text.endswith("$") and not self.text.endswith("\\$"):
            self.text = self.text[:-1]
        self.at = 0

    def fail(self, why: str) -> BadExpression:
        return BadExpression(f"{why} (at character {self.at} of {self.text!r})")

    def peek(self) -> str:
        return self.text[self.at] if self.at < len(self.text) else ""

    def take(self) -> str:
        character = self.peek()
        if not character:
            raise self.fail("the expression ends too early")
        self.at += 1
        return character

    def parse(self) -> Node:
        node = self.alternatives(0)
        if self.peek():
            raise self.fail("a ')' without its '('")
        return node

    def alternatives(self, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise self.fail(f"groups are nested more than {MAX_DEPTH} deep")
        branches = [self.sequence(depth)]
        while self.peek() == "|":
            self.at += 1
            branches.append(self.sequence(depth))
        return branches[0] if len(branches) == 1 else Node("alt", branches)

    def sequence(self, depth: int) -> Node:
        parts: list[Node] = []
        while self.peek() not in {"", "|", ")"}:
            parts.append(self.repeated(self.atom(depth)))
        return Node("cat", parts)

    def repeated(self, node: Node) -> Node:
        quantified = False
        while (character := self.peek()) and character in "*+?{":
            if quantified:
                if character == "?":  # lazy: the same texts match
                    self.at += 1
                    break
                raise self.fail("a quantifier after a quantifier")
            self.at += 1
            least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(character) or self.counts()
            node, quantified = Node("rep", [node], least=least, most=most), True
        return node

    def counts(self) -> tuple[int, int | None]:
        body, brace, _ = self.text[self.at :].partition("}")
        low, comma, high = body.partition(",")
        if not brace or not low.isascii() or not low.isdigit() or (high and not (high.isascii() and high.isdigit())):
            raise self.fail(r"'{' begins a count like {2,5}; write \{ for the character")
        self.at += len(body) + 1
        least = int(low)
        most = None if comma and not high else int(high or low)
        if least > MAX_REPEAT or (most is not None and (most > MAX_REPEAT or most < least)):
            raise self.fail(f"a count runs from low to high, {MAX_REPEAT} at most")
        return least, most

    def atom(self, depth: int) -> Node:
        character = self.take()
        if character == "(":
            if self.peek() == "?":
                if not self.text.startswith("?:", self.at):
                    raise self.fail("only (?: ) groups; no look-around, names or flags")
                self.at += 2
            node = self.alternatives(depth + 1)
            if self.take() != ")":
                raise self.fail("a '(' without its ')'")
            return node
        if character == "[":
            return Node("set", ranges=self.bracket())
        if character == ".":
            return Node("set", ranges=_negated([(0x0A, 0x0A)]))
        if character == "\\":
            return Node("set", ranges=self.folded(self.escape()))
        if character in "*+?{":
            raise self.fail("a quantifier with nothing before it")
        if character in "^$":
            raise self.fail("the whole text is matched; write \\^ or \\$ for the character")
        return Node("set", ranges=self.folded(((ord(character), ord(character)),)))

    def folded(self, ranges: Ranges) -> Ranges:
        return _folded(ranges) if self.fold else ranges

    def escape(self) -> Ranges:
        character = self.take()
        if character.lower() in _CLASSES:
            ranges = _CLASSES[character.lower()]
            return ranges if character.islower() else _negated(ranges)
        if character in _CONTROLS:
            character = _CONTROLS[character]
        elif character == "x":
            digits = self.text[self.at : self.at + 2]
            if len(digits) != 2 or any(digit not in "0123456789abcdefABCDEF" for digit in digits):
                raise self.fail(r"\x takes two hexadecimal digits")
            self.at += 2
            character = chr(int(digits, 16))
        elif character.isalnum() or not character.isascii():
            raise self.fail(f"\\{character} is not supported")
        return ((ord(character), ord(character)),)

    def bracket(self) -> Ranges:
        negate = self.peek() == "^"
        self.at += negate
        ranges: list[tuple[int, int]] = []
        while self.peek() != "]" or not ranges:
            low = self.member()
            if self.peek() == "-" and self.text[self.at + 1 : self.at + 2] not in {"]", ""}:
                self.at += 1
                high = self.member()
                if len(low) != 1 or len(high) != 1 or low[0][0] != low[0][1] or low[0][0] > high[0][1]:
                    raise self.fail("a range runs from a low character to a high one")
                low = ((low[0][0], high[0][1]),)
            ranges.extend(low)
        self.at += 1
        folded = self.folded(tuple(ranges))
        return _negated(folded) if negate else folded

    def member(self) -> Ranges:
        character = self.take()
        return self.escape() if character == "\\" else ((ord(character), ord(character)),)


class Expression:
    """A compiled expression. `matches(text)`: the whole of it. Texts beyond MAX_TEXT never match: so a rule denies
    them."""

    __slots__ = ("_accept", "_cache", "_jumps", "_moves", "_start", "pattern")

    def __init__(self, pattern: str) -> None:
        """Raises BadExpression."""
        if len(pattern) > MAX_PATTERN:
            raise BadExpression(f"an expression has at most {MAX_PATTERN} characters")
        self.pattern = pattern
        self._jumps: list[tuple[int, ...]] = []  # state -> states reached without a character
        self._moves: list[Ranges] = []  # state -> characters that lead to state + 1
        last = self._build(_Parser(pattern).parse(), self._state())
        self._accept = last
        self._start = self._closure((0,))
        self._cache: dict[tuple[frozenset[int], str], frozenset[int]] = {}

    def matches(self, text: str) -> bool:
        if len(text) > MAX_TEXT:
            return False
        here, cache, work = self._start, self._cache, 0
        for character in text:
            onward = cache.get((here, character))
            if onward is None:
                work += len(here)
                if work > MAX_WORK:
                    return False
                if len(cache) >= MAX_TRANSITIONS:
                    cache.clear()
                onward = cache[here, character] = self._step(here, ord(character))
            if not onward:
                return False
            here = onward
        return self._accept in here

    def _step(self, states: frozenset[int], point: int) -> frozenset[int]:
        return self._closure(
            state + 1 for state in states if any(low <= point <= high for low, high in self._moves[state])
        )

    def _closure(self, states: Iterable[int]) -> frozenset[int]:
        todo, seen = list(states), set[int]()
        while todo:
            state = todo.pop()
            if state not in seen:
                seen.add(state)
                todo.extend(self._jumps[state])
        return frozenset(seen)

    # -- Thompson's construction: a move always leads to the next state, jumps lead anywhere --------------------------
    def _state(self) -> int:
        if len(self._jumps) >= MAX_STATES:
            raise BadExpression(f"the expression is too large (more than {MAX_STATES} states)")
        self._jumps.append(())
        self._moves.append(())
        return len(self._jumps) - 1

    def _jump(self, source: int, target: int) -> None:
        self._jumps[source] = (*self._jumps[source], target)

    def _build(self, node: Node, start: int) -> int:
        """Append the states of a node after `start`; the state where it ends."""
        if node.kind == "set":
            return self._build_set(node.ranges, start)
        if node.kind == "cat":
            for part in node.parts:
                start = self._build(part, start)
            return start
        if node.kind == "alt":
            ends = []
            for branch in node.parts:
                first = self._state()
                self._jump(start, first)
                ends.append(self._build(branch, first))
            last = self._state()
            for end in ends:
                self._jump(end, last)
            return last
        return self._build_repeat(node.parts[0], node.least, node.most, start)

    def _build_set(self, ranges: Ranges, start: int) -> int:
        # The move's own state, so that `start` may carry the jumps of an alternative or a loop.
        own = self._state()
        self._jump(start, own)
        last = self._state()
        self._moves[own] = ranges
        return last

    def _build_repeat(self, part: Node, least: int, most: int | None, start: int) -> int:
        for _ in range(least):
            own = self._state()  # one state a turn, so that repeating nothing costs something, too
            self._jump(start, own)
            start = self._build(part, own)
        if most is None:
            again = self._state()
            self._jump(start, again)
            self._jump(self._build(part, again), again)
            return again
        ends = []
        for _ in range(most - least):
            ends.append(start)
            own = self._state()
            self._jump(start, own)
            start = self._build(part, own)
        last = self._state()
        for end in [*ends, start]:
            self._jump(end, last)
        return last
