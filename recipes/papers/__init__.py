"""Claims of papers, checked at small scale: a package for each paper, and what they share in `_claims`.

A paper's package has its TITLE, its ARXIV identifier (None without one), and CLAIMS, the names of its claims: a module
each, whose CLAIM says what is run, what the paper expects and by which rule the outcome is judged.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from hf_pdyn.common.errors import check_choice

if TYPE_CHECKING:
    from ._claims.claim import Claim

PAPERS = ("allocation", "adam_bias", "mirror_flow")


def paper(name: str) -> ModuleType:
    """The package of a paper; ValueError for another name."""
    check_choice("the paper", name, PAPERS)
    return importlib.import_module(f"papers.{name}")


def claim(name: str) -> Claim:
    """A claim of any paper; ValueError for another name."""
    paper_of = {claim: one for one in PAPERS for claim in paper(one).CLAIMS}
    check_choice("the claim", name, list(paper_of))
    return importlib.import_module(f"papers.{paper_of[name]}.{name}").CLAIM
