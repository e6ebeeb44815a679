"""Differences between runs of one seed: Student's interval, and an exact test that assumes nothing of their shape."""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from hf_pdyn.sweep import statistics
from hf_pdyn.sweep.outcome import CONFIRMED, INCONCLUSIVE, OPPOSITE, Outcome

LEVEL = 1 - statistics.CONFIDENCE
FEWEST_SEEDS = 6
"""Five differences with one sign have 2 of 32 sign flips with a mean as large: .0625."""
PAIRED_RULE = f"""{statistics.EFFECT_RULE} Confirmed and opposite need more: that of all ways to flip the signs of the
seeds' differences, at most {LEVEL:.0%} have a mean as far from zero (from {FEWEST_SEEDS} seeds on they can); else the
effect is inconclusive."""


def sign_flip(differences: Sequence[float] | np.ndarray) -> float:
    """The share of sign flips whose mean is as far from zero as that of the differences; NaN where one is NaN."""
    values = np.asarray(differences, float)
    if np.isnan(values).any():
        return math.nan
    flips = np.array(list(itertools.product((-1.0, 1.0), repeat=len(values))))
    sums = np.abs(flips @ values)
    return float(np.mean(sums >= abs(values.sum()) * (1 - 1e-12)))


def effect(differences: Sequence[float] | np.ndarray, bound: float, *, direction: int = +1) -> Outcome:
    """By PAIRED_RULE. differences: of every seed, NaN for a run without the number. direction, bound: as `effect`."""
    outcome = statistics.effect(statistics.mean_of(differences), bound, direction=direction)
    if outcome in (CONFIRMED, OPPOSITE) and not sign_flip(differences) <= LEVEL:
        return INCONCLUSIVE
    return outcome


def difference(differences: Sequence[float] | np.ndarray, bound: float) -> Outcome:
    """The outcome of an effect claimed in no direction: by PAIRED_RULE, and confirmed on either side of zero."""
    outcome = effect(differences, bound)
    return CONFIRMED if outcome is OPPOSITE else outcome
