"""What git knows: which commit the code is of, and which came first, a rule or the rows that it judges."""

import functools
import os
import subprocess
import textwrap
from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
CODE = (
    "hf_pdyn",
    "recipes",
    ":(exclude,glob)recipes/papers/*/results/**",
    ":(exclude,glob)recipes/papers/*/larger/**",
)
"""What decides a run; rows, verdicts and figures do not."""


class Standing(StrEnum):
    """Which came first, the rule or the rows. UNDATED: git or its history is missing, or the time of a row."""

    BEFORE = "rule before rows"
    AFTER = "rule after rows"
    UNCOMMITTED = "rule not committed"
    UNDATED = "undated"


@functools.cache
def code_commit(root: Path = ROOT) -> str | None:
    """The commit that is checked out, with "+dirty" where the code differs from it; or what COMMIT says; or None.

    COMMIT is for copies of a checkout, whose git may be missing, or be that of another commit.
    """
    if named := os.environ.get("COMMIT"):
        return named
    if not _git(root, "ls-files", "recipes/claim.py"):  # no repository, or one around this directory
        return None
    changed = _git(root, "status", "--porcelain", "--untracked-files=all", "--", *CODE)
    return f"{_git(root, 'rev-parse', 'HEAD')}{'+dirty' if changed else ''}"


def keep(rule: str, path: Path) -> None:
    """Write a rule to the file whose commits date it."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(_lines(rule), "utf-8")


def standing(rule: str, path: Path, times: Iterable[datetime | None]) -> tuple[str | None, Standing]:
    """The commit in which the file of a rule became what it is, and how the rule stands to rows of these times."""
    if _git(path.parents[1], "rev-parse", "--is-shallow-repository") != "false":
        return None, Standing.UNDATED
    found = _git(path.parents[1], "log", "-1", "--format=%H %cI", "--", str(path))
    changed = _git(path.parents[1], "status", "--porcelain", "--", str(path))
    if not found or changed or path.read_text("utf-8") != _lines(rule):
        return None, Standing.UNCOMMITTED
    commit, committed = found.split()
    of_rows = list(times)
    if any(time is not None and time < datetime.fromisoformat(committed) for time in of_rows):
        return commit, Standing.AFTER
    return commit, Standing.UNDATED if None in of_rows else Standing.BEFORE


def _lines(rule: str) -> str:
    return textwrap.fill(" ".join(rule.split()), 120, break_long_words=False, break_on_hyphens=False) + "\n"


def _git(directory: Path, *words: str) -> str | None:
    """What it says; None where it is missing, or refuses."""
    try:
        done = subprocess.run(["git", "-C", str(directory), *words], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
