"""Thinning."""

import random

import pytest

from hf_pdyn.report.recorded_run import Series
from hf_pdyn.report.thinning import evenly, thin


def series(values: list[float]) -> Series:
    return Series(tuple(range(len(values))), (None,) * len(values), tuple(values))


@pytest.mark.parametrize("count", [1, 7, 50, 51, 1000, 4321])
def test_thinned_lines_keep_ends_and_extremes(count: int) -> None:
    rng = random.Random(count)
    values = [rng.random() for _ in range(count)]
    thinned = thin(series(values), 50)
    assert len(thinned) == count if count <= 50 else 25 < len(thinned) <= 50
    assert {0, count - 1} <= set(thinned.steps) and list(thinned.steps) == sorted(thinned.steps)
    assert {min(values), max(values)} <= set(thinned.values)
    assert all(values[step] == value for step, value in zip(thinned.steps, thinned.values, strict=True))


def test_evenly() -> None:
    assert evenly([5, 6, 7], 3) == [5, 6, 7]
    assert evenly(list(range(101)), 5) == [0, 25, 50, 75, 100]
