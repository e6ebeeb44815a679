"""llms.txt, made of the first page's lists: `python docs/_site/llms.py` writes it."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

DOCS = Path(__file__).parents[1]


def llms_text() -> str:
    """The title, the first paragraph and the lists of docs/index.md, with links from the repository's root."""
    page = (DOCS / "index.md").read_text(encoding="utf-8")
    title, rest = page.split("\n", 1)
    summary = rest.strip().split("\n\n")[0].replace("\n", " ")
    sections = page.split("```{toctree}")[0].split("\n## ")[1:]
    parts = [f"{title}\n\n> {summary}\n"]
    for section in sections:
        heading, *lines = section.splitlines()
        items = [_from_root(line) for line in lines if line.startswith("- ")]
        parts.append(f"## {heading}\n\n" + "\n".join(items) + "\n")
    return "\n".join(parts)


def _from_root(line: str) -> str:
    return re.sub(r"\]\(([^)]+)\)", lambda match: f"]({posixpath.normpath(f'docs/{match[1]}')})", line)


if __name__ == "__main__":
    (DOCS.parent / "llms.txt").write_text(llms_text(), encoding="utf-8")
