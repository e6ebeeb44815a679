"""Numbers as users write them, and as checkpoints have them."""

from __future__ import annotations

import math
import re
from typing import TypeGuard

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
    return is_int_or_float(value) and is_finite(value)


def is_int_or_float(value: object) -> TypeGuard[int | float]:
    """Whether `value` is an int or a float, infinite or NaN perhaps; a bool is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_finite(value: int | float) -> bool:
    """Whether a float can hold `value`: an int may be larger."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def is_count(value: object) -> bool:
    """Whether `value` is an int >= 0 that a float can hold."""
    return isinstance(value, int) and is_number(value) and value >= 0
