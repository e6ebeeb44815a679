import math

import pytest

from papers._claims import statistics
from papers._claims.statistics import CONFIRMED, INCONCLUSIVE, NOT_CONFIRMED

CLEAR = [[10.0, 10.1, 9.9], [8.0, 8.1, 7.9], [5.0, 5.1, 4.9]]
NOISY = [[10.0, 4.0, 13.0], [9.0, 5.0, 12.0], [8.9, 6.0, 11.0]]
BENT = [[5.0, 5.1, 4.9], [9.0, 9.1, 8.9], [4.0, 4.1, 3.9]]


@pytest.mark.parametrize(
    ("by_x", "direction", "expected"),
    [
        (CLEAR, -1, CONFIRMED),
        (CLEAR, +1, NOT_CONFIRMED),
        (CLEAR[::-1], +1, CONFIRMED),
        (NOISY, -1, INCONCLUSIVE),  # falls in the mean, but by less than seeds differ
        (BENT, -1, INCONCLUSIVE),  # rho = 0.5
        ([[1.0, 1.0, 1.0]] * 3, -1, NOT_CONFIRMED),
        ([*CLEAR[:2], [math.nan, 5.0, 5.0]], -1, INCONCLUSIVE),  # a diverged run
    ],
)
def test_verdict_on_a_trend(by_x: list[list[float]], direction: int, expected: str) -> None:
    assert statistics.trend(by_x).verdict(direction) == expected


def test_trend_is_paired_by_seed() -> None:
    found = statistics.trend([[1.0, 11.0, 21.0], [2.0, 12.0, 22.1]])
    assert found.change.mean == pytest.approx(31 / 30)
    assert found.change.spread == pytest.approx(math.sqrt(((1 / 30) ** 2 * 2 + (2 / 30) ** 2) / 2))
    assert found.verdict(+1) == CONFIRMED


def test_mean_and_its_error() -> None:
    found = statistics.mean_of([1.0, 2.0, 6.0])
    assert (found.mean, found.n) == (3.0, 3)
    assert found.spread == pytest.approx(math.sqrt(7))
    assert found.interval == pytest.approx(4.302653 * math.sqrt(7 / 3))  # Student's t of 0.975 and two degrees
    assert statistics.differs(statistics.Mean(1.0, 0.4, 3)) and not statistics.differs(statistics.Mean(1.0, 0.41, 3))


@pytest.mark.parametrize(
    ("difference", "expected"),
    [
        (statistics.Mean(1.0, 0.1, 3), CONFIRMED),
        (statistics.Mean(1.0, 1.0, 3), INCONCLUSIVE),
        (statistics.Mean(0.0, 0.0, 3), NOT_CONFIRMED),
        (statistics.Mean(-1.0, 5.0, 3), NOT_CONFIRMED),
        (statistics.Mean(math.nan, math.nan, 3), INCONCLUSIVE),
    ],
)
def test_above_zero(difference: statistics.Mean, expected: str) -> None:
    assert statistics.above_zero(difference) == expected


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([CONFIRMED, CONFIRMED], CONFIRMED),
        ([CONFIRMED, INCONCLUSIVE], INCONCLUSIVE),
        ([INCONCLUSIVE, NOT_CONFIRMED, CONFIRMED], NOT_CONFIRMED),
    ],
)
def test_a_claim_of_several_parts(parts: list[str], expected: str) -> None:
    assert statistics.all_of(parts) == expected
