"""Targets of what weight decay lowers, and when they are reached: pure functions of what was observed.

Their text has no character that a shell would touch, as that of moments (see `policy.schedules`):

==============================  =====================================================================
`a_t=-0.05`                     cumulative weight decay (`pdyn/a_t`) has fallen to -0.05
`lora/nuc_over_fro=2.5`         nuclear over Frobenius norm of LoRA's B A (`pdyn/spectrum/...`) has
                                fallen to 2.5; `attention/...` and `attention_heads/...` are of K^T Q
==============================  =====================================================================
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from hf_pdyn.common.checkpoint_state import check_keys, damaged
from hf_pdyn.common.errors import did_you_mean, shortened
from hf_pdyn.common.numbers import format_number, is_count, is_number, parse_number
from hf_pdyn.policy.schedules import Moment

A_T = "a_t"
RATIO = "nuc_over_fro"
PRODUCTS = ("attention", "attention_heads", "lora")
"""Whose ratio can be a target, by the names of their metrics."""

QUANTITIES = (A_T, *(f"{product}/{RATIO}" for product in PRODUCTS))

_ROUNDING = 1e-9
"""Relative; the decay of one step is far more."""
_LIKE_A_MOMENT = re.compile(r"\s*([+\-.0-9]|epoch|$)")


@dataclass(frozen=True)
class DecayTarget:
    """A value down to which one of QUANTITIES falls."""

    quantity: str
    value: float

    @classmethod
    def parse(cls, text: str) -> DecayTarget:
        """`a_t=-0.05` or `lora/nuc_over_fro=2.5`; anything else is a ValueError."""
        name, equals, number = text.strip().partition("=")
        form = "Write a target as QUANTITY=NUMBER, as in a_t=-0.05 or lora/nuc_over_fro=2.5"
        if not equals:
            raise ValueError(
                f"{shortened(text)} is neither a moment of training nor a target. {form}, and a moment as 0.5, 200 or "
                "epoch:2."
            )
        if name not in QUANTITIES:
            raise ValueError(
                f"Weight decay cannot wait for {shortened(name)}; quantities that it lowers are "
                f"{', '.join(QUANTITIES)}.{did_you_mean(name, QUANTITIES)}"
            )
        try:
            value = parse_number(number)
        except ValueError as error:
            raise ValueError(f"{shortened(text)} has no value: {error} {form}.") from None
        if name == A_T and value >= 0:
            raise ValueError(
                f"a_t starts at 0 and falls, so a target must be negative, got {number.strip()}. Write a_t=-0.05."
            )
        if name != A_T and value <= 1:
            raise ValueError(
                f"The ratio of a nuclear to a Frobenius norm is 1 at rank one and larger at any other, got {text}. "
                "Write a value above 1."
            )
        return cls(name, value)

    @property
    def product(self) -> str | None:
        """Whose ratio it is; None for a_t."""
        product, slash, _ = self.quantity.partition("/")
        return product if slash else None

    def reached_by(self, value: float) -> bool:
        """Whether the quantity is at or below the target, but for the rounding of sums over steps."""
        return value <= self.value + _ROUNDING * abs(self.value)

    def __str__(self) -> str:
        """The text that `parse` reads back."""
        return f"{self.quantity}={format_number(self.value)}"


def moment_or_target(value: Moment | DecayTarget | str | float) -> Moment | DecayTarget:
    """Either as it may be written: itself, its text, an int of steps or a float fraction; else ValueError."""
    if isinstance(value, Moment | DecayTarget):
        return value
    text = str(value)
    return Moment.parse(text) if _LIKE_A_MOMENT.match(text) else DecayTarget.parse(text)


@dataclass(frozen=True)
class Approach:
    """How a quantity came down to a target.

    above: whether it has been above. A quantity that starts below, as LoRA's ratio does, has to rise first.
    last: the last value observed. reached_at: steps done when it was at or below the target; `last` stays there.
    """

    above: bool = False
    last: float | None = None
    reached_at: int | None = None

    @classmethod
    def start(cls, target: DecayTarget) -> Approach:
        """Return the approach of a new training; a_t is 0 there, above every target."""
        return cls(above=target.quantity == A_T)

    def observe(self, target: DecayTarget, value: float, step: int) -> Approach:
        """The approach after `step` steps, when the quantity was `value`."""
        if self.reached_at is not None:
            return self
        if not target.reached_by(value):
            return Approach(above=True, last=value)
        return Approach(self.above, value, step if self.above else None)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able dict; floats survive it bit for bit."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: object, target: DecayTarget) -> Approach:
        """Return the inverse of `to_dict`; ValueError for what it cannot have returned on the way to `target`."""
        approach = cls(**check_keys(values, [field.name for field in dataclasses.fields(cls)], "The way to a target"))
        last, reached_at = approach.last, approach.reached_at
        possible = (
            isinstance(approach.above, bool)
            and (last is None or is_number(last))
            and (reached_at is None or is_count(reached_at))
            and (reached_at is not None) == (approach.above and last is not None and target.reached_by(last))
        )
        if not possible:
            raise damaged(f"The way to {target} cannot be {approach}")
        return approach
