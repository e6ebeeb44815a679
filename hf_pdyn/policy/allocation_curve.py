"""What any exponent p would make of the moments of one step: sizes, directions, allocation (ours).

Of a group of parameters, let

    M(s) = sum_i m_hat_i^2 (v_hat_i + eps)^(-s)

Then M tells of the update u(p) = m_hat / (v_hat + eps)^p, for every p and from the same state,

    ||u(p)|| = M(2p)^(1/2),    u(p) . u(q) = M(p + q),

and sums over groups are sums of their M. So one run at one p shows what another p would do: how much of it is a
learning rate (`lr_factor`), how much is direction (`cosine`), and how it moves weights against bias-like parameters
(`update_ratio`). Pure: `measure.power_moments` takes M from an optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

FIRST, STEP, COUNT = -0.8, 0.05, 57
EXPONENTS = tuple(FIRST + STEP * i for i in range(COUNT))
"""The s at which M is taken, -0.8 to 2."""
P_MIN, P_MAX = EXPONENTS[0] / 2, EXPONENTS[-1] / 2
"""The exponents p of which M tells everything."""
ADAM = 0.5

_POINTS = 8


@dataclass(frozen=True)
class PowerMoments:
    """log M(s) of one group at EXPONENTS; every value finite.

    Between them it is the polynomial through the eight nearest: right to 1e-6 for log-normal v_hat that spreads over 12
    powers of ten, to 3e-5 where half of the parameters have a v_hat e^16 times the other half's.
    """

    log_values: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.log_values) != COUNT or not all(map(math.isfinite, self.log_values)):
            raise ValueError(f"log M must be {COUNT} finite numbers, got {self.log_values}.")

    def log_at(self, s: float) -> float:
        """The logarithm of M(s)."""
        first, t = _nearest(s)
        return sum(weight * self.log_values[first + i] for i, weight in enumerate(_weights(t)))

    def slope_at(self, s: float) -> float:
        """Its derivative: -E[log(v_hat + eps)], weighted by m_hat^2 (v_hat + eps)^(-s)."""
        first, t = _nearest(s)
        return sum(weight * self.log_values[first + i] for i, weight in enumerate(_slope_weights(t))) / STEP

    def log_norm(self, p: float) -> float:
        """The logarithm of ||u(p)||, without the learning rate."""
        return self.log_at(2 * p) / 2


def total(groups: Iterable[PowerMoments]) -> PowerMoments:
    """M of all groups together."""
    rows = zip(*(group.log_values for group in groups), strict=True)
    return PowerMoments(tuple(log_sum_exp(row) for row in rows))


def lr_factor(moments: PowerMoments, p: float) -> float:
    """c(p) = (M(1) / M(2p))^(1/2), by which a learning rate must grow so that updates have the size of Adam's."""
    return math.exp(moments.log_norm(ADAM) - moments.log_norm(p))


def size_factor(moments: PowerMoments, p: float, p_step: float) -> float:
    """||u(p + p_step)|| / ||u(p)||: what moving p does to the size of raw updates."""
    return math.exp(moments.log_norm(min(max(p + p_step, P_MIN), P_MAX)) - moments.log_norm(p))


def cosine(moments: PowerMoments, p: float, q: float = ADAM) -> float:
    """cos(u(p), u(q)): 1 where the two differ by a learning rate alone."""
    return min(1.0, math.exp(moments.log_at(p + q) - moments.log_norm(p) - moments.log_norm(q)))


def update_ratio(weight: PowerMoments, bias_like: PowerMoments, p: float) -> float:
    """U_w / U_b, the norm of the weights' update over that of the bias-like parameters'."""
    return math.exp(weight.log_norm(p) - bias_like.log_norm(p))


def update_ratio_slope(weight: PowerMoments, bias_like: PowerMoments, p: float) -> float:
    """The derivative of log(U_w / U_b) by p: which way, and how strongly, p moves the allocation."""
    return weight.slope_at(2 * p) - bias_like.slope_at(2 * p)


def check_exponent(p: float) -> None:
    """ValueError for a p of which M on EXPONENTS tells nothing."""
    if not P_MIN - 1e-9 <= p <= P_MAX + 1e-9:
        raise ValueError(f"The allocation curve knows exponents from {P_MIN:g} to {P_MAX:g}, got p={p:g}.")


def _nearest(s: float) -> tuple[int, float]:
    """The first of the _POINTS of EXPONENTS around s, and s in steps from it."""
    check_exponent(s / 2)
    place = (s - FIRST) / STEP
    first = min(max(math.floor(place) - _POINTS // 2 + 1, 0), COUNT - _POINTS)
    return first, place - first


def _weights(t: float) -> list[float]:
    """Lagrange's weights of the values at 0, ..., _POINTS - 1 for the value at t."""
    return [math.prod((t - j) / (i - j) for j in range(_POINTS) if j != i) for i in range(_POINTS)]


def _slope_weights(t: float) -> list[float]:
    """The same for the derivative at t."""
    return [
        sum(
            math.prod((t - j) / (i - j) for j in range(_POINTS) if j not in (i, left_out)) / (i - left_out)
            for left_out in range(_POINTS)
            if left_out != i
        )
        for i in range(_POINTS)
    ]


def log_sum_exp(values: Iterable[float]) -> float:
    """The logarithm of the sum of exp(value); -inf is that of 0."""
    values = list(values)
    largest = max(values)
    if largest == -math.inf:
        return largest
    return largest + math.log(sum(math.exp(value - largest) for value in values))
