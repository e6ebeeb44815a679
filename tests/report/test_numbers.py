"""Thinning, and what sample losses say."""

import random
import statistics

import pytest

from hf_pdyn.report import samples
from hf_pdyn.report.run import Series
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


def test_quantiles_are_those_of_the_standard_library() -> None:
    values = sorted(random.Random(0).lognormvariate(0, 1) for _ in range(57))
    expected = statistics.quantiles(values, n=20, method="inclusive")
    assert [samples.quantile(values, i / 20) for i in range(1, 20)] == pytest.approx(expected, rel=1e-12)
    assert samples.quantile([3.0], 0.95) == 3.0


def test_hard_samples_are_the_highest_tenth() -> None:
    losses = {index: float(index % 20) for index in range(40)}
    assert samples.hard_samples(losses) == {18, 19, 38, 39}
    assert samples.hard_samples({7: 1.0, 3: 1.0}) == {3}


def test_jaccard() -> None:
    one, other = frozenset({1, 2, 3}), frozenset({2, 3, 4})
    assert samples.jaccard(one, other) == 0.5
    assert samples.jaccard(one, one) == 1.0 and samples.jaccard(one, frozenset()) == 0.0
