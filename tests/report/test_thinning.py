"""Thinning."""

from hypothesis import given
from hypothesis import strategies as st

from hf_pdyn.report.recorded_run import Series
from hf_pdyn.report.thinning import evenly, thin


def series(values: list[float]) -> Series:
    return Series(tuple(range(len(values))), (None,) * len(values), tuple(values))


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=300), st.integers(4, 60))
def test_thinned_lines_keep_ends_and_extremes(values: list[float], most: int) -> None:
    thinned = thin(series(values), most)
    assert len(thinned) == len(values) if len(values) <= most else most / 2 <= len(thinned) <= most
    assert {0, len(values) - 1} <= set(thinned.steps) and list(thinned.steps) == sorted(set(thinned.steps))
    assert {min(values), max(values)} <= set(thinned.values)
    assert all(values[step] == value for step, value in zip(thinned.steps, thinned.values, strict=True))


@given(st.lists(st.integers(), unique=True).map(sorted), st.integers(2, 60))
def test_evenly_chosen_items_keep_their_order_and_ends(items: list[int], most: int) -> None:
    chosen = evenly(items, most)
    assert len(chosen) == min(len(items), most) and chosen == sorted(set(chosen)) and set(chosen) <= set(items)
    assert chosen[:1] == items[:1] and chosen[-1:] == items[-1:]


def test_evenly() -> None:
    assert evenly([5, 6, 7], 3) == [5, 6, 7]
    assert evenly(list(range(101)), 5) == [0, 25, 50, 75, 100]
