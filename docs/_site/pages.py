"""What the site does with its pages: links to files beside docs/, llms.txt, a check of links, notebooks' time."""

from __future__ import annotations

import posixpath
import re
import shutil
from pathlib import Path
from typing import Any

from built_links import broken_links
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

ROOT_PAGES = {name.lower(): f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING", "paper_index")}
"""Pages of docs/repository/, and the file at the top of the repository that each shows."""
LONGEST = 180
"""Seconds that a notebook may take."""


def read_page(app: Sphinx, docname: str, source: list[str]) -> None:
    """Lead links as GitHub follows them to pages of the site; a page of repository/ shows the file that it names."""
    folder, _, name = docname.rpartition("/")
    if folder == "repository":
        file = ROOT_PAGES[name]
        source[0] = _with_links(
            (Path(app.srcdir).parent / file).read_text(encoding="utf-8"), Path(file).parent, "../../"
        )
    else:
        source[0] = _with_links(source[0], Path("docs", folder), "../" * (docname.count("/") + 1))
    if docname == "index":
        source[0] += _toctree_of_the_rest(source[0], sorted(app.project.docnames))


def _toctree_of_the_rest(index: str, docnames: list[str]) -> str:
    """A toctree of the pages that the first page's toctrees leave out; empty where there are none."""
    rest = [name for name in docnames if name != "index" and not re.search(rf"(^|<){name}>?$", index, re.MULTILINE)]
    return "\n```{toctree}\n:hidden:\n:caption: More\n\n" + "\n".join(rest) + "\n```\n" if rest else ""


def _with_links(text: str, folder: Path, up: str) -> str:
    """`text`, whose links are relative to `folder` of the repository, with links of the site.

    up: the way from the page to the repository's root.
    """

    def lead(match: re.Match[str]) -> str:
        target, hash_, anchor = match["target"].partition("#")
        path = posixpath.normpath(posixpath.join(folder.as_posix(), target))
        page = next((page for page, file in ROOT_PAGES.items() if file == path), None)
        if page is not None:
            return f"](/repository/{page}.md{hash_}{anchor})"
        if path.startswith("docs/") and not path.startswith("docs/upstream/"):
            return f"](/{path.removeprefix('docs/')}{hash_}{anchor})"
        # Other files are for loading; images know their way.
        return f"]({up}{path})" if path.endswith(".png") else f"](path:{up}{path})"

    return re.sub(r"\]\((?![a-z]+:|#|/)(?P<target>[^)\s]+)\)", lead, text)


def write_llms(app: Sphinx) -> None:
    """llms.txt, with links to the pages' Markdown, which stands below _sources/."""
    text = (Path(app.srcdir).parent / "llms.txt").read_text()
    Path(app.outdir, "llms.txt").write_text(text.replace("](docs/", "](_sources/"))


def check_built(app: Sphinx, exception: Exception | None) -> None:
    """Refuse a site with a broken link inside, and a notebook that takes too long."""
    if exception is not None or app.builder.name != "html":
        return
    write_llms(app)
    broken = broken_links(Path(app.outdir))
    if broken:
        raise ExtensionError("Links that lead nowhere:\n" + "\n".join(broken))
    for docname, seconds in sorted(notebook_seconds(app).items()):
        print(f"{seconds:6.1f} s  {docname}")
        if seconds > LONGEST:
            raise ExtensionError(f"{docname} took {seconds:.0f} s; a notebook may take {LONGEST}.")
    shutil.rmtree(Path(app.outdir) / "jupyter_execute", ignore_errors=True)


def notebook_seconds(app: Sphinx) -> dict[str, float]:
    """How long each notebook took that this build executed."""
    found: dict[str, Any] = getattr(app.env, "nb_metadata", {})
    runs = {docname: metadata.get("exec_data", {}) for docname, metadata in found.items()}
    return {docname: run["runtime"] for docname, run in runs.items() if run.get("runtime") is not None}


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", read_page)
    app.connect("build-finished", check_built)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
