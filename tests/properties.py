"""What property tests of parsers share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def result_or_refusal(parse: Callable[[str], Any], text: str) -> tuple[Any, str | None]:
    """What `parse` makes of `text`, or the text of its ValueError; any other exception passes through."""
    try:
        return parse(text), None
    except ValueError as error:
        return None, str(error)
