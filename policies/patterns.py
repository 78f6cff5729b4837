"""Globs over tool ids and names, compiled once: `*` is any run of characters, `?` is one, all else is itself.

Case-sensitive, and the whole id must match. Linear in the id for a given pattern: every `*` but the last takes the
leftmost fit and never gives it back (an atomic group), which for globs loses no match and leaves nothing to backtrack.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

_RUN: Final = re.compile(r"\*+")


def translate(glob: str) -> str:
    """The regular expression (for `re.fullmatch`) of one glob."""
    first, *rest = ("".join("." if c == "?" else re.escape(c) for c in part) for part in _RUN.split(glob))
    if not rest:
        return f"(?s:{first})"
    middle = "".join(f"(?>.*?{part})" for part in rest[:-1] if part)
    return f"(?s:{first}{middle}.*{rest[-1]})"


class Patterns:
    """A list of globs: literals in a set, the others compiled. `find` says which one matched, for the record."""

    __slots__ = ("_globs", "_literals")

    def __init__(self, globs: tuple[str, ...]) -> None:
        self._literals = frozenset(glob for glob in globs if "*" not in glob and "?" not in glob)
        self._globs = tuple(
            (glob, re.compile(translate(glob)).fullmatch) for glob in globs if glob not in self._literals
        )

    def find(self, name: str) -> str | None:
        """The pattern that matches `name`, a literal before a glob, globs in the order given; None when none does."""
        if name in self._literals:
            return name
        for glob, match in self._globs:
            if match(name) is not None:
                return glob
        return None

    def __contains__(self, name: str) -> bool:
        return self.find(name) is not None

    def __bool__(self) -> bool:
        return bool(self._literals or self._globs)


@lru_cache(maxsize=4096)
def compiled(globs: tuple[str, ...]) -> Patterns:
    """The shared Patterns of a tuple of globs: profiles that say the same share them."""
    return Patterns(globs)
