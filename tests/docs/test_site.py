"""What the site is built from agrees with itself; scripts/docs, which CI runs, builds it."""

import re
import sys
from pathlib import Path

import pytest

from tests.docs.markdown import ROOT

DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS / "_site"))

from built_links import broken_links  # noqa: E402
from llms import llms_text  # noqa: E402

INDEX = (DOCS / "index.md").read_text()
LISTED = {(DOCS / link).resolve() for link in re.findall(r"^- \[.+?\]\(([^)]+)\): ", INDEX, re.MULTILINE)}


def test_llms_txt_is_of_the_first_page() -> None:
    assert (ROOT / "llms.txt").read_text() == llms_text(), "run python docs/_site/llms.py"


FOLDERS = ("concepts", "how_to", "notebooks", "reference")
"""Whose pages the first page says something of; others it may leave to the site's navigation."""


@pytest.mark.parametrize(
    "page",
    [path for folder in FOLDERS for path in sorted((DOCS / folder).glob("*.md"))],
    ids=lambda path: str(path.relative_to(DOCS)),
)
def test_the_first_page_lists_a_page(page: Path) -> None:
    assert page in LISTED, f"add {page.relative_to(DOCS)} to the lists and a toctree of docs/index.md"


def test_links_inside_a_built_site_are_followed(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    links = ("sub/page.html#there", "sub/page.html#gone", "https://example.org")
    text = "".join(f'<a href="{link}">x</a>' for link in links)
    (tmp_path / "index.html").write_text(f'{text}<img src="no.png">')
    (tmp_path / "sub" / "page.html").write_text(
        '<h1 id="there">x</h1><a href="../index.html">x</a><a href="#top">x</a>'
    )
    assert broken_links(tmp_path) == ["index.html: no.png", "index.html: sub/page.html#gone", "sub/page.html: #top"]
