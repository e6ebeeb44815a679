"""The Markdown of the repository: its pages, their code blocks, their headings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)])
_FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,})(?P<language>[^\n`]*)$")
_BLOCK = re.compile(r"^( *)(`{3,})[^\n]*\n.*?^\1\2$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"^ *<!-- (?P<kind>not run|given): (?P<text>.+) -->$")


@dataclass(frozen=True)
class Block:
    """A fenced code block. `not_run` is the reason why no test runs it, `given` what it needs."""

    path: Path
    line: int
    language: str
    text: str
    not_run: str | None
    given: tuple[str, ...]

    @property
    def place(self) -> str:
        """The file and line, for messages and ids."""
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def blocks(path: Path) -> Iterator[Block]:
    """Yield the code blocks of a page. A comment `not run: REASON` or `given: NAMES` stands before a block."""
    marks: dict[str, str] = {}
    fence: re.Match[str] | None = None
    begin, body = 0, []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if fence is not None:
            if line.strip() == fence["ticks"]:
                given = tuple(name.strip() for name in marks.get("given", "").split(",") if name.strip())
                yield Block(path, begin, fence["language"].strip(), "\n".join(body) + "\n", marks.get("not run"), given)
                fence, marks = None, {}
            else:
                body.append(line.removeprefix(fence["indent"]))
        elif (found := _FENCE.match(line)) is not None:
            fence, begin, body = found, number, []
        elif (mark := _MARK.match(line)) is not None:
            marks[mark["kind"]] = mark["text"]
        elif line.strip():
            marks = {}
    assert fence is None, f"{path}: the code block of line {begin} has no end"


def without_code(path: Path) -> str:
    """The page's text without its code blocks and code spans."""
    text = _BLOCK.sub("", path.read_text(encoding="utf-8"))
    return re.sub(r"`[^`\n]+`", "", text)


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them; a second one of a name has -1."""
    text = _BLOCK.sub("", path.read_text(encoding="utf-8"))
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *$", text, re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", shown).replace(" ", "-")
        found.add(next(name for i in range(99) if (name := slug if i == 0 else f"{slug}-{i}") not in found))
    return found
