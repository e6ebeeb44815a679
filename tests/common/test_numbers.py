import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_pdyn.common.numbers import format_number, is_count, is_number, parse_number
from tests.properties import result_or_refusal

FEW = settings(max_examples=200)


@FEW
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_what_is_printed_parses_back(number: float) -> None:
    assert parse_number(format_number(number)) == number


@FEW
@given(st.text())
def test_any_text_is_a_finite_number_or_one_error(text: str) -> None:
    number, refusal = result_or_refusal(parse_number, text)
    assert math.isfinite(number) if refusal is None else "is no finite number" in refusal


@pytest.mark.parametrize("text", ["1_0", "nan", "inf", "1e999", "9" * 400, "\u0661", "0x10", "", "1 0", ".", "e5"])
def test_what_is_no_decimal_number(text: str) -> None:
    with pytest.raises(ValueError, match="is no finite number"):
        parse_number(text)


@pytest.mark.parametrize("value", [True, None, "1", math.nan, math.inf, 10**400, [1], 1j])
def test_what_a_float_cannot_hold_is_no_number(value: object) -> None:
    assert not is_number(value)
    assert not is_count(value)


def test_counts_are_whole_and_not_negative() -> None:
    assert is_count(0)
    assert not is_count(-1)
    assert not is_count(1.0)
    assert is_number(-1.5)
