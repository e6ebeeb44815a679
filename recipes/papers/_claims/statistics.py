"""Means, spreads and trends over seeds, and the rules by which they become verdicts."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIRMED, NOT_CONFIRMED, INCONCLUSIVE = "confirmed", "not confirmed", "inconclusive"

MONOTONE = 0.9
FLAT = 0.5
STANDARD_ERRORS = 3.0

TREND_RULE = (
    f"confirmed where the means over seeds go the claimed way with Spearman's correlation of at least {MONOTONE} and "
    f"both ends differ that way by more than {STANDARD_ERRORS:g} standard errors of the difference, paired by seed; "
    f"not confirmed where that correlation is below {FLAT}, or the ends differ the other way by more than that; else "
    "inconclusive"
)


@dataclass(frozen=True)
class Mean:
    """The mean over seeds, and the standard deviation between them."""

    mean: float
    spread: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.3g} ± {self.spread:.2g}"

    @property
    def error(self) -> float:
        """The standard error of the mean."""
        return self.spread / math.sqrt(self.n)


def mean_of(values: Sequence[float]) -> Mean:
    """Over at least two values."""
    return Mean(float(np.mean(values)), float(np.std(values, ddof=1)), len(values))


def means_by_p(exponents: Sequence[float], values: Iterable[Sequence[float]]) -> dict[str, str]:
    """For a verdict: of values by p and seed, each p's mean with its spread."""
    return {f"p={p:g}": str(mean_of(of_p)) for p, of_p in zip(exponents, values, strict=True)}


@dataclass(frozen=True)
class Trend:
    """How a quantity moves with x. correlation: Spearman's, of its means. change: from the first x to the last."""

    correlation: float
    change: Mean

    def verdict(self, direction: int) -> str:
        """By TREND_RULE; `direction` is the claimed one, +1 rises, -1 falls."""
        correlation, change = direction * self.correlation, direction * self.change.mean
        clear = STANDARD_ERRORS * self.change.error
        if correlation >= MONOTONE and change > clear:
            return CONFIRMED
        if correlation < FLAT or change < -clear:
            return NOT_CONFIRMED
        return INCONCLUSIVE


def trend(by_x: Sequence[Sequence[float]]) -> Trend:
    """Of values by x in ascending order, by seed: shape (x, seeds). NaN is a diverged run, and no trend at all."""
    values = np.asarray(by_x, float)
    means = values.mean(axis=1)
    if not np.isfinite(means).all() or np.ptp(means) == 0:
        correlation = 0.0
    else:
        correlation = float(stats.spearmanr(np.arange(len(means)), means).statistic)
    return Trend(correlation, mean_of((values[-1] - values[0]).tolist()))


def differs(difference: Mean) -> bool:
    """Whether a mean difference, paired by seed, is more than STANDARD_ERRORS away from zero."""
    return abs(difference.mean) > STANDARD_ERRORS * difference.error


def all_of(verdicts: Iterable[str]) -> str:
    """A claim of several parts: confirmed if all are, not confirmed if one is not."""
    found = set(verdicts)
    if found == {CONFIRMED}:
        return CONFIRMED
    return NOT_CONFIRMED if NOT_CONFIRMED in found else INCONCLUSIVE
