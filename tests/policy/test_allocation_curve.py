"""The allocation curve against directions computed anew, in float64."""

import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from hf_pdyn.policy.allocation_curve import (
    EXPONENTS,
    P_MAX,
    P_MIN,
    PowerMoments,
    cosine,
    lr_factor,
    size_factor,
    total,
    update_ratio,
    update_ratio_slope,
)

TRIED = (-0.4, 0.0, 0.25, 0.37, 0.5, 1.0)
CLOSE = 1e-5
"""The error of interpolated log M at the spreads drawn here: eight points 0.05 apart (measured: below 1e-6)."""


def drawn(seed: int, level: float, spread: float = 3.0, count: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """m_hat, and v_hat + eps whose logarithms are spread so much."""
    rng = np.random.default_rng(seed)
    x = np.exp(level + spread * rng.standard_normal(count))
    return rng.standard_normal(count) * np.sqrt(x), x


def moments(m: np.ndarray, x: np.ndarray) -> PowerMoments:
    return PowerMoments(tuple(math.log((m**2 * x**-s).sum()) for s in EXPONENTS))


WEIGHT, BIAS = drawn(0, -18.0), drawn(1, -12.0, spread=1.5, count=60)
BOTH = tuple(np.concatenate(pair) for pair in zip(WEIGHT, BIAS, strict=True))


def direction(group: tuple[np.ndarray, ...], p: float) -> np.ndarray:
    m, x = group
    return m * x**-p


@pytest.mark.parametrize("p", TRIED)
def test_everything_follows_from_the_curve(p: float) -> None:
    weight, bias_like = moments(*WEIGHT), moments(*BIAS)
    both = total([weight, bias_like])
    norm = {name: np.linalg.norm(direction(group, p)) for name, group in (("w", WEIGHT), ("b", BIAS), ("all", BOTH))}
    adam = direction(BOTH, 0.5)
    assert math.exp(both.log_norm(p)) == pytest.approx(norm["all"], rel=CLOSE)
    assert update_ratio(weight, bias_like, p) == pytest.approx(norm["w"] / norm["b"], rel=CLOSE)
    assert lr_factor(both, p) == pytest.approx(np.linalg.norm(adam) / norm["all"], rel=CLOSE)
    expected = direction(BOTH, p) @ adam / (norm["all"] * np.linalg.norm(adam))
    assert cosine(both, p) == pytest.approx(expected, rel=CLOSE)


@pytest.mark.parametrize("p", TRIED)
def test_slopes_are_those_of_finite_differences(p: float) -> None:
    def log_ratio(q: float) -> float:
        return math.log(np.linalg.norm(direction(WEIGHT, q)) / np.linalg.norm(direction(BIAS, q)))

    h = 1e-4
    expected = (log_ratio(p + h) - log_ratio(p - h)) / (2 * h)
    assert update_ratio_slope(moments(*WEIGHT), moments(*BIAS), p) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_a_step_of_p_changes_the_size_of_updates() -> None:
    both = moments(*BOTH)
    expected = np.linalg.norm(direction(BOTH, 0.42)) / np.linalg.norm(direction(BOTH, 0.4))
    assert size_factor(both, 0.4, 0.02) == pytest.approx(expected, rel=CLOSE)
    assert size_factor(both, P_MAX, 0.02) == 1


@hypothesis.given(
    seed=st.integers(0, 10_000), level=st.floats(-40, 10), spread=st.floats(0, 3), count=st.integers(1, 50)
)
def test_log_moments_are_convex_and_cosines_at_most_one(seed: int, level: float, spread: float, count: int) -> None:
    curve = moments(*drawn(seed, level, spread, count))
    assert (np.diff(curve.log_values, 2) > -1e-9).all()
    for p in TRIED:
        assert 0 < cosine(curve, p) <= 1
        assert cosine(curve, p, p) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("p", [P_MIN - 0.01, P_MAX + 0.01, math.nan])
def test_exponents_beyond_the_curve_are_refused(p: float) -> None:
    with pytest.raises(ValueError, match=r"-0\.4 to 1, got p="):
        moments(*BOTH).log_norm(p)


@pytest.mark.parametrize("values", [(), (0.0,) * 56, (math.nan,) * 57])
def test_a_curve_is_whole(values: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="57 finite numbers"):
        PowerMoments(values)
