"""Replacing a function of another library."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

_MARK = "replaced_by_hf_pdyn"


def replace_once(owner: Any, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Let `owner.name` be what `wrap` makes of it, if it is there and is not that already.

    A library that wraps ours in its turn with functools.wraps copies the mark, so ours stays the inner one.
    """
    original = getattr(owner, name, None)
    if original is None or getattr(original, _MARK, False):
        return
    replacement = functools.wraps(original)(wrap(original))
    setattr(replacement, _MARK, True)
    setattr(owner, name, replacement)
