"""Effects and trends over seeds, and the rules by which they become outcomes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from hf_pdyn.sweep.outcome import CONFIRMED, INCONCLUSIVE, NO_EFFECT, OPPOSITE, Outcome

CONFIDENCE = 0.95

EFFECT_RULE = f"""Of an effect, with the {CONFIDENCE:.0%} confidence interval of its mean over seeds (Student's t),
paired by seed: no effect where the interval lies within the bound on both sides of zero; else confirmed where it lies
on the claimed side of zero, opposite where it lies on the other, and inconclusive where it holds zero or a run has no
number."""
TREND_RULE = """A trend is the change from the first setting to the last along each seed's own least-squares line,
judged as an effect."""
AGREEMENT_RULE = f"""A mean over seeds agrees with an expected number where its {CONFIDENCE:.0%} confidence interval
(Student's t) lies within the tolerance of it: then confirmed; no effect where the interval lies within the tolerance
of zero; else opposite where no part of it is within the tolerance, and inconclusive where one is or a run has no
number."""


@dataclass(frozen=True)
class Mean:
    """The mean over seeds, and the standard deviation between them."""

    mean: float
    spread: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.3g} ± {self.spread:.2g}"

    @property
    def interval(self) -> tuple[float, float]:
        """The confidence interval of the mean."""
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, self.n - 1)) * self.spread / math.sqrt(self.n)
        return self.mean - half, self.mean + half


def mean_of(values: Sequence[float | None] | np.ndarray) -> Mean:
    """Over at least two values; None, of a run that diverged, makes it NaN."""
    found = np.asarray(values, float)
    return Mean(float(found.mean()), float(found.std(ddof=1)), len(found))


def means_by_p(exponents: Sequence[float], values: Iterable[Sequence[float]]) -> dict[str, str]:
    """For a verdict: of values by p and seed, each p's mean with its spread."""
    return {f"p={p:g}": str(mean_of(of_p)) for p, of_p in zip(exponents, values, strict=True)}


def trend(x: Sequence[float], by_x: Sequence[Sequence[float]] | np.ndarray) -> Mean:
    """The change from the first x to the last along each seed's least-squares line, over seeds.

    x: settings in order, as numbers between which a straight line makes sense (logarithms of learning rates). by_x: of
    shape (x, seeds); NaN is a run that has no such number.
    """
    return mean_of(slopes(x, by_x) * (x[-1] - x[0]))


def slopes(x: Sequence[float], by_x: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    """Those of each seed's least-squares line, (seeds,); x and by_x as in `trend`."""
    values, settings = np.asarray(by_x, float), np.asarray(x, float)
    centred = settings - settings.mean()
    return np.asarray(centred @ values / (centred @ centred))


def effect(found: Mean, bound: float, *, direction: int = +1) -> Outcome:
    """By EFFECT_RULE. direction: the claimed side of zero, +1 or -1. bound: above zero."""
    low, high = sorted(direction * end for end in found.interval)
    if math.isnan(low):
        return INCONCLUSIVE
    if -bound <= low and high <= bound:
        return NO_EFFECT
    return CONFIRMED if low > 0 else OPPOSITE if high < 0 else INCONCLUSIVE


def difference(found: Mean, bound: float) -> Outcome:
    """The outcome of an effect claimed in no direction: by EFFECT_RULE, and confirmed on either side of zero."""
    outcome = effect(found, bound)
    return CONFIRMED if outcome is OPPOSITE else outcome


def agreement(found: Mean, expected: float, tolerance: float) -> Outcome:
    """By AGREEMENT_RULE."""
    low, high = found.interval
    if math.isnan(low):
        return INCONCLUSIVE
    if expected - tolerance <= low and high <= expected + tolerance:
        return CONFIRMED
    if -tolerance <= low and high <= tolerance:
        return NO_EFFECT
    return OPPOSITE if high < expected - tolerance or low > expected + tolerance else INCONCLUSIVE
