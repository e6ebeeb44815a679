"""Links inside a built site: each leads to a file that is there, and to an anchor that the file has."""

from __future__ import annotations

from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class _Page(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value and name in ("href", "src"):
                self.links.add(value)
            elif value and (name == "id" or (tag == "a" and name == "name")):
                self.anchors.add(value)


@cache
def _read(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def broken_links(site: Path) -> list[str]:
    """Return `PAGE: LINK` for every link of an HTML page below `site` that leads to no file or anchor there."""
    _read.cache_clear()
    broken = []
    for path in sorted(site.rglob("*.html")):
        for link in sorted(_read(path).links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            missing = not target.exists()
            # A page's generated index has none of its own; a fragment of what is no HTML is the reader's.
            if not missing and parts.fragment and target.suffix == ".html":
                missing = unquote(parts.fragment) not in _read(target).anchors
            if missing:
                broken.append(f"{path.relative_to(site)}: {link}")
    return broken
