import math

import numpy as np
import pytest

from hf_pdyn.sweep import statistics
from hf_pdyn.sweep.outcome import CONFIRMED, INCONCLUSIVE, NO_EFFECT, OPPOSITE, Outcome
from hf_pdyn.sweep.statistics import Mean

HALF = 4.302653 / math.sqrt(3)
"""Half the interval of three values whose spread is 1: Student's t of 0.975 and two degrees of freedom."""


def mean(low: float, high: float) -> Mean:
    """The mean of three seeds whose confidence interval that is."""
    return Mean((low + high) / 2, (high - low) / 2 / HALF, 3)


def test_mean_and_its_interval() -> None:
    found = statistics.mean_of([1.0, 2.0, 6.0])
    assert (found.mean, found.n) == (3.0, 3)
    assert found.spread == pytest.approx(math.sqrt(7))
    assert found.interval == pytest.approx((3 - HALF * math.sqrt(7), 3 + HALF * math.sqrt(7)))


INTERVALS = [
    (0.2, 0.8, CONFIRMED),
    (0.01, 0.8, CONFIRMED),  # away from zero, and perhaps beyond the bound
    (0.01, 0.09, NO_EFFECT),  # away from zero, and surely within it
    (-0.09, 0.09, NO_EFFECT),
    (-0.09, -0.01, NO_EFFECT),
    (-0.09, 0.2, INCONCLUSIVE),
    (-0.8, 0.8, INCONCLUSIVE),
    (-0.8, -0.01, OPPOSITE),
    (-0.8, -0.2, OPPOSITE),
    (0.0, 0.0, NO_EFFECT),
    (0.5, 0.5, CONFIRMED),
    (math.nan, math.nan, INCONCLUSIVE),
]


@pytest.mark.parametrize(("low", "high", "expected"), INTERVALS)
def test_effect(low: float, high: float, expected: Outcome) -> None:
    assert statistics.effect(mean(low, high), 0.1) is expected


@pytest.mark.parametrize(("low", "high", "expected"), INTERVALS)
def test_an_effect_claimed_the_other_way_is_mirrored(low: float, high: float, expected: Outcome) -> None:
    assert statistics.effect(mean(-high, -low), 0.1, direction=-1) is expected


@pytest.mark.parametrize(("low", "high", "expected"), INTERVALS)
def test_a_difference_has_no_direction(low: float, high: float, expected: Outcome) -> None:
    found = statistics.difference(mean(low, high), 0.1)
    assert found is (CONFIRMED if expected is OPPOSITE else expected)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1.95, 2.05, CONFIRMED),
        (1.95, 2.2, INCONCLUSIVE),
        (1.0, 3.0, INCONCLUSIVE),
        (1.7, 1.8, OPPOSITE),  # clearly another number
        (2.2, 9.0, OPPOSITE),
        (-3.0, -2.0, OPPOSITE),
        (-0.05, 0.09, NO_EFFECT),
        (math.nan, math.nan, INCONCLUSIVE),
    ],
)
def test_agreement(low: float, high: float, expected: Outcome) -> None:
    assert statistics.agreement(mean(low, high), 2.0, 0.1) is expected


def test_a_trend_is_the_change_along_every_seeds_line() -> None:
    """Against NumPy's fit of every seed alone, at settings that are not equally far apart."""
    x = [-0.4, 0.0, 0.1, 0.3]
    by_x = np.array([[1.0, 2.0, 0.5], [3.0, 2.5, 0.0], [2.0, 4.0, 1.0], [5.0, 4.5, 2.0]])
    slopes = [np.polyfit(x, of_seed, 1)[0] for of_seed in by_x.T]
    np.testing.assert_allclose(statistics.slopes(x, by_x), slopes)
    found = statistics.trend(x, by_x)
    assert found.mean == pytest.approx(0.7 * np.mean(slopes))
    assert found.spread == pytest.approx(0.7 * np.std(slopes, ddof=1))
    assert found.n == 3


def test_a_trend_is_of_seeds_not_of_their_mean() -> None:
    """Seeds that start apart and move alike have a clear trend; that of seeds which move apart is none."""
    alike = [[1.0, 11.0, 21.0], [2.0, 12.0, 22.1]]
    assert statistics.effect(statistics.trend([0, 1], alike), 0.1) is CONFIRMED
    apart = [[1.0, 11.0, 21.0], [9.0, 6.0, 23.0]]
    assert statistics.effect(statistics.trend([0, 1], apart), 0.1) is INCONCLUSIVE


def test_a_diverged_run_leaves_no_trend() -> None:
    found = statistics.trend([0, 1, 2], [[10.0, 10.1, 9.9], [8.0, 8.1, 7.9], [math.nan, 5.1, 4.9]])
    assert statistics.effect(found, 0.1, direction=-1) is INCONCLUSIVE
