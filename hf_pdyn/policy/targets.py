"""Control by target: the p at which the update has a wanted allocation or size, solved on the allocation curve (ours).

Pure: `callbacks.PTargetCallback` feeds it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from hf_pdyn.common.errors import check_choice
from hf_pdyn.common.numbers import format_number, parse_number
from hf_pdyn.policy.allocation_curve import ADAM, P_MAX, P_MIN, PowerMoments, log_sum_exp

Quantity = Literal["update_ratio", "bias_share", "lr_factor"]
HOLD = "hold"

_POINTS = 65
_BISECTIONS = 50


@dataclass(frozen=True)
class Target:
    """What the update shall have.

    quantity: `update_ratio` is U_w / U_b; `bias_share` the bias-like part of the update's squared norm, in (0, 1);
    `lr_factor` c, the size of Adam's update over this one's. value: None holds what it is when control begins.
    """

    quantity: Quantity
    value: float | None

    def __post_init__(self) -> None:
        check_choice("the target", self.quantity, get_args(Quantity))
        if self.value is None:
            return
        if not (math.isfinite(self.value) and self.value > 0) or (self.quantity == "bias_share" and self.value >= 1):
            limits = "lie between 0 and 1" if self.quantity == "bias_share" else "be a finite number > 0"
            raise ValueError(f"The target {self.quantity} must {limits}, got {self.value}.")

    @classmethod
    def parse(cls, text: str) -> Target:
        """`update_ratio=6`, `bias_share=0.1`, `lr_factor=2`, or one of them `=hold`; ValueError for anything else."""
        quantity, equals, value = text.strip().partition("=")
        if not equals:
            raise ValueError(
                f"A target is QUANTITY=NUMBER or QUANTITY=hold, got {text!r}. Quantities are "
                f"{', '.join(get_args(Quantity))}."
            )
        check_choice("the target", quantity, get_args(Quantity))
        try:
            number = None if value == HOLD else parse_number(value)
        except ValueError as error:
            raise ValueError(f"The target {quantity} needs a number or hold: {error}") from None
        return cls(quantity, number)  # type: ignore[arg-type]  # checked

    def __str__(self) -> str:
        """The text that `parse` reads back."""
        return f"{self.quantity}={HOLD if self.value is None else format_number(self.value)}"


@dataclass(frozen=True)
class Part:
    """The moments of one label's parameters. p: their exponent, None where it is the one that is solved for."""

    pathway: str
    moments: PowerMoments
    p: float | None = None


def value_at(quantity: Quantity, parts: Sequence[Part], p: float) -> float:
    """The quantity that the update would have at this p; NaN for a ratio or share where a pathway is missing."""
    logs = {"weight": [-math.inf], "bias_like": [-math.inf]}
    adam = []
    for part in parts:
        logs[part.pathway].append(part.moments.log_at(2 * (p if part.p is None else part.p)))
        adam.append(part.moments.log_at(2 * ADAM))
    weight, bias_like = (log_sum_exp(values) for values in logs.values())
    if quantity == "lr_factor":
        return math.exp((log_sum_exp(adam) - log_sum_exp([weight, bias_like])) / 2)
    if math.inf in (-weight, -bias_like):
        return math.nan
    if quantity == "update_ratio":
        return math.exp((weight - bias_like) / 2)
    return 1 / (1 + math.exp(weight - bias_like))


def solve(quantity: Quantity, wanted: float, parts: Sequence[Part], *, p: float, low: float, high: float) -> float:
    """The p in [low, high] at which the quantity is the wanted one.

    Of several the nearest to `p`; where there is none, the p that comes closest, and of equals the nearest to `p`.
    `low` and `high` are cut to what the curve knows. ValueError where the quantity is not defined.
    """
    low, high = max(low, P_MIN), min(high, P_MAX)

    def error(at: float) -> float:
        return math.log(value_at(quantity, parts, at) / wanted)

    points = [low + (high - low) * i / (_POINTS - 1) for i in range(_POINTS)]
    errors = [error(point) for point in points]
    if any(math.isnan(found) for found in errors):
        raise ValueError(f"{quantity} needs weights and bias-like parameters that are trained, got one of them.")
    roots = [
        _root(error, points[i], points[i + 1])
        for i in range(_POINTS - 1)
        if (errors[i] <= 0 <= errors[i + 1]) or (errors[i + 1] <= 0 <= errors[i])
    ]
    if roots:
        return min(roots, key=lambda root: abs(root - p))
    return min(zip(points, errors, strict=True), key=lambda pair: (round(abs(pair[1]), 9), abs(pair[0] - p)))[0]


def _root(error: Callable[[float], float], low: float, high: float) -> float:
    """By bisection: `error` changes its sign between them."""
    rises = error(low) <= 0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if (error(middle) <= 0) == rises:
            low = middle
        else:
            high = middle
    return (low + high) / 2
