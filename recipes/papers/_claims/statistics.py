"""Means, spreads and trends over seeds, and the rules by which they become verdicts."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIRMED, NOT_CONFIRMED, INCONCLUSIVE = "confirmed", "not confirmed", "inconclusive"

MONOTONE = 0.9
FLAT = 0.5
CONFIDENCE = 0.95

CLEARLY = (
    f"Clearly: by more than half the width of the {CONFIDENCE:.0%} confidence interval of the mean difference, paired "
    "by seed (Student's t)."
)
ABOVE_RULE = (
    f"confirmed where it is above zero, clearly; not confirmed where its mean is not; else inconclusive. {CLEARLY}"
)
TREND_RULE = (
    "Of a trend: confirmed where the means over seeds go the claimed way with Spearman's correlation of at least "
    f"{MONOTONE} and both ends differ that way, clearly; not confirmed where that correlation is below {FLAT}, or the "
    f"ends differ the other way, clearly; else, and where a run has no such number, inconclusive. {CLEARLY}"
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
    def interval(self) -> float:
        """Half the width of the confidence interval of the mean."""
        return float(stats.t.ppf((1 + CONFIDENCE) / 2, self.n - 1)) * self.spread / math.sqrt(self.n)


def mean_of(values: Sequence[float | None] | np.ndarray) -> Mean:
    """Over at least two values; None, of a run that diverged, makes it NaN."""
    found = np.asarray(values, float)
    return Mean(float(found.mean()), float(found.std(ddof=1)), len(found))


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
        if math.isnan(correlation):
            return INCONCLUSIVE
        if correlation >= MONOTONE and change > self.change.interval:
            return CONFIRMED
        if correlation < FLAT or change < -self.change.interval:
            return NOT_CONFIRMED
        return INCONCLUSIVE


def trend(by_x: Sequence[Sequence[float]] | np.ndarray) -> Trend:
    """Of values by x in ascending order, by seed: shape (x, seeds). NaN is a run that has no such number."""
    values = np.asarray(by_x, float)
    means = values.mean(axis=1)
    if not np.isfinite(means).all():
        correlation = math.nan
    elif np.ptp(means) == 0:
        correlation = 0.0
    else:
        correlation = float(stats.spearmanr(np.arange(len(means)), means).statistic)
    return Trend(correlation, mean_of(values[-1] - values[0]))


def differs(difference: Mean) -> bool:
    """Whether a mean difference, paired by seed, is away from zero, clearly."""
    return abs(difference.mean) > difference.interval


def above_zero(difference: Mean) -> str:
    """By ABOVE_RULE."""
    if difference.mean <= 0:
        return NOT_CONFIRMED
    return CONFIRMED if differs(difference) else INCONCLUSIVE


def all_of(verdicts: Iterable[str]) -> str:
    """A claim of several parts: confirmed if all are, not confirmed if one is not."""
    found = set(verdicts)
    if found == {CONFIRMED}:
        return CONFIRMED
    return NOT_CONFIRMED if NOT_CONFIRMED in found else INCONCLUSIVE
