"""What the site does with its pages: links to files beside docs/, llms.txt, a check of links, notebooks' time."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from built_links import broken_links
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util import logging

logger = logging.getLogger(__name__)

ROOT_PAGES = {"CHANGELOG": "changelog", "CONTRIBUTING": "contributing", "paper_index": "paper_index"}
"""Files of the repository's root that are pages, below root/; README is the first page's."""
LONGEST = 180
"""Seconds that a notebook may take."""


def link_root_files(app: Sphinx, docname: str, source: list[str]) -> None:
    """Lead a link to a file of the repository's root, as GitHub follows it, to that file's page."""
    up = "../" * (docname.count("/") + 1)

    def page(match: re.Match[str]) -> str:
        name = match["name"]
        return "](/index.md" if name == "README" else f"](/root/{ROOT_PAGES[name]}.md{match['anchor'] or ''}"

    names = "|".join([*ROOT_PAGES, "README"])
    text = re.sub(rf"\]\({re.escape(up)}(?P<name>{names})\.md(?P<anchor>#[\w-]+)?", page, source[0])
    # Other Markdown outside docs/ is a file to load.
    source[0] = re.sub(rf"\]\(({re.escape(up)}[^)]*\.md)\)", r"](path:\1)", text)


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
        logger.info("%6.1f s  %s", seconds, docname)
        if seconds > LONGEST:
            raise ExtensionError(f"{docname} took {seconds:.0f} s; a notebook may take {LONGEST}.")
    shutil.rmtree(Path(app.outdir) / "jupyter_execute", ignore_errors=True)


def notebook_seconds(app: Sphinx) -> dict[str, float]:
    """How long each notebook took that this build executed."""
    found: dict[str, Any] = getattr(app.env, "nb_metadata", {})
    runs = {docname: metadata.get("exec_data", {}) for docname, metadata in found.items()}
    return {docname: run["runtime"] for docname, run in runs.items() if run.get("runtime") is not None}


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", link_root_files)
    app.connect("build-finished", check_built)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
