"""Differences by seed: the exact test beside Student's interval."""

import math

import pytest

from hf_pdyn.sweep.outcome import CONFIRMED, INCONCLUSIVE, NO_EFFECT, OPPOSITE
from papers._claims.paired import difference, effect, sign_flip

GAINS = [1.0, 1.1, 0.9, 1.2, 0.8, 1.0]


def test_sign_flips_by_hand() -> None:
    assert sign_flip(GAINS) == 2 / 64
    assert sign_flip([1.0, 1.0, 1.0, 1.0, 1.0, -1.0]) == 14 / 64  # all alike, or one of six that differs: 2 + 12
    assert sign_flip([0.0, 0.0, 0.0]) == 1.0
    assert math.isnan(sign_flip([1.0, math.nan]))


def test_an_effect_needs_both() -> None:
    assert effect(GAINS, 0.5) is CONFIRMED
    assert effect(GAINS, 0.5, direction=-1) is OPPOSITE
    assert difference([-gain for gain in GAINS], 0.5) is CONFIRMED
    assert effect(GAINS[:5], 0.5) is INCONCLUSIVE  # 2 of 32 flips
    assert effect(GAINS, 2.0) is NO_EFFECT
    assert effect([*GAINS[:5], math.nan], 0.5) is INCONCLUSIVE


@pytest.mark.parametrize("direction", [1, -1])
def test_one_outlier_confirms_nothing(direction: int) -> None:
    assert effect([5.0, 0.2, -0.1, 0.1, -0.2, 0.1], 0.5, direction=direction) is INCONCLUSIVE
