"""A Markdown page, as far as the tests look into it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^```(\w*)\s*$")
_SAVED = re.compile(r"[Ss]ave (?:this|it) as `([\w.-]+)`")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the line of its fence, and what the paragraph before says."""

    kind: str
    text: str
    line: int
    before: str

    @property
    def saved_as(self) -> str:
        """The file that the reader is told to save it as, or ""."""
        found = _SAVED.search(self.before)
        return found[1] if found else ""

    @property
    def commands(self) -> list[str]:
        return [line for line in self.text.splitlines() if line.strip()]

    def __str__(self) -> str:
        return f"line {self.line} {self.kind}: {self.text.splitlines()[0][:60]}"


@dataclass(frozen=True)
class Page:
    """One file."""

    path: Path
    text: str

    @classmethod
    def read(cls, name: str) -> Page:
        return cls(ROOT / name, (ROOT / name).read_text(encoding="utf-8"))

    def blocks(self) -> list[Block]:
        """Fenced blocks, in order. A fence that is never closed is an AssertionError."""
        found: list[Block] = []
        paragraph: list[str] = []
        lines = enumerate(self.text.splitlines(), 1)
        for number, line in lines:
            fence = _FENCE.match(line)
            if fence is None:
                if line.strip():
                    paragraph.append(line)
                else:
                    paragraph = paragraph if not paragraph or paragraph[-1] == "" else [*paragraph, ""]
                continue
            body: list[str] = []
            for _, inner in lines:
                if inner.startswith("```"):
                    break
                body.append(inner)
            else:
                raise AssertionError(f"{self.path.name}:{number}: the fence is never closed")
            found.append(Block(fence[1], "\n".join(body) + "\n", number, _last_paragraph(paragraph)))
            paragraph = []
        return found

    def prose(self) -> str:
        """The text without its fenced blocks."""
        return re.sub(r"^```.*?^```$", "", self.text, flags=re.MULTILINE | re.DOTALL)

    def tables(self) -> Iterator[list[list[str]]]:
        """Tables as rows of cells, the heading first. A pipe in a cell is written `\\|`."""
        rows: list[list[str]] = []
        for line in [*self.prose().splitlines(), ""]:
            if line.startswith("|"):
                cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
                if not all(set(cell) <= set("-: ") for cell in cells):
                    rows.append(cells)
            elif rows:
                yield rows
                rows = []

    def table(self, first: str) -> list[list[str]]:
        """The rows of the one table whose first heading is `first`."""
        found = [rows[1:] for rows in self.tables() if rows[0][0] == first]
        assert len(found) == 1, f"{self.path.name} has {len(found)} tables headed {first!r}"
        return found[0]

    def links(self) -> list[str]:
        return re.findall(r"\]\(([^)\s]+)\)", self.prose())

    def anchors(self) -> set[str]:
        """The ids that GitHub gives to headings."""
        headings = re.findall(r"^#+ (.+)$", self.prose(), flags=re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def spans(cell: str) -> list[str]:
    """The texts of a cell or paragraph that stand between backticks."""
    return re.findall(r"`([^`]+)`", cell)


def broken_links(page: Page) -> list[str]:
    """Relative links that lead nowhere: no such file, or no such heading in it."""
    broken: list[str] = []
    for link in page.links():
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.path.parent / path).resolve() if path else page.path
        if not target.exists():
            broken.append(f"{link}: no such file")
        elif anchor and anchor not in Page(target, target.read_text(encoding="utf-8")).anchors():
            broken.append(f"{link}: no such heading")
    return broken


def agrees(expected: str, actual: str, *, whole: bool = True) -> bool:
    """Whether an output is as printed. `…` stands for anything within a line, alone on a line for any lines; runs of
    blanks are one; without `whole` more lines may come before and after."""
    pattern = ""
    for line in expected.rstrip("\n").splitlines():
        if line.strip() == "…":
            pattern += r"(?:[^\n]*\n)*?"
            continue
        parts = (re.sub(r"(?:\\ )+", " +", re.escape(part.rstrip())) for part in line.rstrip().split("…"))
        pattern += r"[^\n]*?".join(parts) + r" *\n"
    text = actual.rstrip("\n") + "\n"
    return bool(re.fullmatch(pattern, text) if whole else re.search(f"^{pattern}", text, flags=re.MULTILINE))


def _last_paragraph(lines: list[str]) -> str:
    """The words right before a block."""
    text = "\n".join(lines).rstrip("\n")
    return text.rpartition("\n\n")[2]
