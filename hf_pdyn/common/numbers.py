"""Numbers as users write them, and as checkpoints have them."""

from __future__ import annotations

import math
import re

from hf_pdyn.common.errors import shortened

_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def parse_number(text: str) -> float:
    """The number that `text` writes in decimal digits; ValueError for anything else (`1_0`, `nan`, `1e999`)."""
    body = text.strip()
    number = float(body) if _DECIMAL.fullmatch(body) else math.nan
    if not math.isfinite(number):
        raise ValueError(f"{shortened(text)} is no finite number.")
    return number


def format_number(number: float) -> str:
    """The shortest text that `parse_number` reads back as the same number."""
    return repr(float(number)).removesuffix(".0")


def is_number(value: object) -> bool:
    """Whether `value` is a finite int or float that a float can hold; a bool is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond the largest float
        return False


def is_count(value: object) -> bool:
    """Whether `value` is an int >= 0 that a float can hold."""
    return isinstance(value, int) and is_number(value) and value >= 0
