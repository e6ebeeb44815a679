"""Checks of what a checkpoint brings back, before any of it is used."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from hf_pdyn.common.errors import shortened


def check_keys(found: object, expected: Collection[str], what: str) -> dict[str, Any]:
    """`found`; ValueError unless it is a dict with exactly the `expected` keys."""
    if not isinstance(found, dict):
        raise damaged(f"{what} must be a dict with the keys {', '.join(expected)}, got {shortened(str(found))}")
    differing = [f"{key!r} is missing" for key in expected if key not in found]
    differing += [f"{key!r} is unknown" for key in found if key not in expected]
    if differing:
        raise damaged(f"{what} must have the keys {', '.join(expected)}; {', '.join(differing)}")
    return found


def damaged(constraint: str) -> ValueError:
    """The error for state that breaks `constraint`."""
    return ValueError(
        f"{constraint}. This checkpoint was damaged, or written by another hf_pdyn: resume with that one, or from an "
        "earlier checkpoint."
    )
