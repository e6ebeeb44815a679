"""What the runs of a sweep say of p: its own effect, the learning rate's, or none that shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hf_pdyn.sweep.plan import Plan
from hf_pdyn.sweep.rows import Row
from hf_pdyn.sweep.statistics import CONFIDENCE, Mean, mean_of

FEWEST_SEEDS = 6
"""With fewer, no exact test of signs reaches 5 %."""


@dataclass(frozen=True)
class Arm:
    """The runs of one p with one way of matching. difference: from the reference's, paired by seed; None for its own.

    values: of the metric, by seed; None of a run that diverged. repeated: whether every seed gave the same value, of
    this p and of the reference: nothing can be told then of what seeds change.
    """

    match: str
    p: float
    learning_rate: float
    values: tuple[float | None, ...]
    difference: Mean | None
    repeated: bool = False

    @property
    def differs(self) -> bool | None:
        """Whether the difference's confidence interval leaves out zero; None where there is no difference to judge."""
        if self.difference is None or math.isnan(self.difference.mean) or self.repeated:
            return None
        low, high = self.difference.interval
        return low > 0 or high < 0

    def __str__(self) -> str:
        if self.difference is None:
            return "the reference"
        if self.repeated:
            return f"{self.difference.mean:+.3g} with every seed"
        if self.differs is None:
            return "a run diverged"
        low, high = self.difference.interval
        return f"{self.difference.mean:+.3g} [{low:+.3g}, {high:+.3g}]"


def arms(plan: Plan, rows: Sequence[Row], metric: str) -> list[Arm]:
    """Those of every way of matching and p, in the plan's order; rows of the compared runs."""
    found = []
    for match in plan.match:
        values = {p: _values(rows, match, p, metric) for p in plan.exponents}
        for p in plan.exponents:
            pairs = zip(values[p], values[plan.reference], strict=True)
            differences = [math.nan if None in pair else pair[0] - pair[1] for pair in pairs]  # type: ignore[operator]
            rate = next(row["configuration"]["learning_rate"] for row in _of(rows, match, p))
            difference = None if p == plan.reference else mean_of(differences)
            repeated = all(None not in of and len(set(of)) == 1 for of in (values[p], values[plan.reference]))
            found.append(Arm(match, p, rate, tuple(values[p]), difference, repeated))
    return found


def sentences(plan: Plan, found: Sequence[Arm], metric: str) -> list[str]:
    """The verdict on each p but the reference, in words."""
    told = []
    for p in plan.exponents:
        if p != plan.reference:
            by_match = {arm.match: arm for arm in found if arm.p == p}
            seeds = ""
            if plan.seeds < FEWEST_SEEDS and any(arm.differs for arm in by_match.values()):
                seeds = f", of {plan.seeds} seeds: take {FEWEST_SEEDS} before you say so"
            told.append(f"p = {p:g} against {plan.reference:g}, {metric}: {_verdict(by_match)}{seeds}.")
    return told


def _verdict(by_match: dict[str, Arm]) -> str:
    if any(arm.repeated for arm in by_match.values()):
        same = _told([arm for arm in by_match.values() if arm.repeated])
        return f"not known, every seed gave the same value ({same}), as where a script does not follow --seed"
    matched = [arm for match, arm in by_match.items() if match != "none"]
    raw = by_match.get("none")
    own = [arm for arm in matched if arm.differs]
    if own:
        return f"p's own effect: {_told(own)} with updates matched by {' and '.join(arm.match for arm in own)}"
    told = _told([*matched, *([raw] if raw else [])])
    if raw is not None and raw.differs:
        if matched and all(arm.differs is False for arm in matched):
            return f"the learning rate's effect: {raw} raw, and none that shows once matched ({_told(matched)})"
        return f"p's effect or its learning rate's ({told}): add --match update_scale to tell them apart"
    if any(arm.differs is None for arm in by_match.values()):
        return f"not known, a run diverged ({told})"
    return f"none visible ({told})"


def _told(found: Sequence[Arm]) -> str:
    return ", ".join(str(arm) for arm in found)


def footnote(plan: Plan) -> str:
    """What the numbers are."""
    return (
        f"Differences are means over {plan.seeds} seeds, paired, with {CONFIDENCE:.0%} intervals (Student's t); one of "
        "twenty leaves out zero by chance."
    )


def _of(rows: Sequence[Row], match: str, p: float) -> list[Row]:
    found = [row for row in rows if (row["configuration"]["match"], row["configuration"]["p"]) == (match, p)]
    return sorted(found, key=lambda row: row["configuration"]["seed"])


def _values(rows: Sequence[Row], match: str, p: float, metric: str) -> list[float | None]:
    return [row["result"].get(metric) for row in _of(rows, match, p)]


def as_json(plan: Plan, found: Sequence[Arm], metric: str) -> dict[str, Any]:
    """All of it, for a file."""
    return {
        "metric": metric,
        "reference": plan.reference,
        "verdicts": sentences(plan, found, metric),
        "arms": [
            {
                "match": arm.match,
                "p": arm.p,
                "learning_rate": arm.learning_rate,
                "values": list(arm.values),
                "difference": None if arm.difference is None else arm.difference.mean,
                "interval": None if arm.differs is None else list(arm.difference.interval),  # type: ignore[union-attr]
            }
            for arm in found
        ],
    }
