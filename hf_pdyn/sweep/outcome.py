"""What a claim can come to: one of four outcomes, or an identity."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """What rows say about an effect that a paper claims.

    OPPOSITE: there is an effect, the other way. NO_EFFECT: there is none as large as the bound that the rule states.
    INCONCLUSIVE: neither can be said.
    """

    CONFIRMED = "confirmed"
    OPPOSITE = "opposite"
    NO_EFFECT = "no effect"
    INCONCLUSIVE = "inconclusive"


CONFIRMED, OPPOSITE, NO_EFFECT, INCONCLUSIVE = Outcome


@dataclass(frozen=True)
class Identity:
    """An equation that algebra proves, so that runs confirm nothing but the code: how far its sides are apart."""

    largest_error: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """False for NaN."""
        return self.largest_error <= self.tolerance

    def __str__(self) -> str:
        name = "identity" if self.holds else "no identity"
        return f"{name} (largest error {self.largest_error:.1e}, tolerance {self.tolerance:g})"


ALL_RULE = """A claim of several parts is confirmed where all are, else opposite where one is, else no effect where
one is, else inconclusive."""


def all_of(outcomes: Iterable[Outcome]) -> Outcome:
    """By ALL_RULE: what stands most against the claim decides."""
    found = set(outcomes)
    return next(outcome for outcome in (OPPOSITE, NO_EFFECT, INCONCLUSIVE, CONFIRMED) if outcome in found)
