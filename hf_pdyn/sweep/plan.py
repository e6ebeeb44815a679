"""Which runs a sweep has: pure functions of its options, and of what earlier runs have shown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from hf_pdyn.common.errors import check_choice
from hf_pdyn.policy.limits import check_limits
from hf_pdyn.sweep.rows import Configuration

Match = Literal["update_scale", "learning_rate", "none"]

GRID = (1 / 3, 1.0, 3.0)
"""Factors of learning rates that are tried for `learning_rate`, around the one at which updates have Adam's size."""
TUNING_SEED = 0
"""Learning rates are tuned on a seed of their own, and compared on the others."""


@dataclass(frozen=True)
class Plan:
    """What is compared.

    exponents: of p, ascending. seeds: how many; they are 1, 2, ... match: how updates of different p are made alike:
    `update_scale` gives all of them Adam's size, `learning_rate` tunes one for each, `none` leaves them. learning_rate:
    the script's.
    """

    exponents: tuple[float, ...]
    seeds: int
    match: tuple[Match, ...]
    learning_rate: float

    def __post_init__(self) -> None:
        if len(set(self.exponents)) < 2:
            raise ValueError(f"--p needs two exponents at least, got {', '.join(f'{p:g}' for p in self.exponents)}.")
        for p in self.exponents:
            check_limits("--p", "p", p)
        if self.seeds < 2:
            raise ValueError(f"--seeds must be 2 at least, for an interval, got {self.seeds}.")
        for match in self.match:
            check_choice("--match", match, get_args(Match))
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"--learning_rate must be a number > 0, got {self.learning_rate}.")

    @property
    def reference(self) -> float:
        """The p that the others are compared with: Adam's if it is there, else the largest."""
        return 0.5 if 0.5 in self.exponents else max(self.exponents)

    def tuning(self, factors: Mapping[float, float]) -> list[Configuration]:
        """The runs that find a learning rate for each p; none unless `learning_rate` is matched.

        factors: c(p) by p, the learning rate's factor in p, as a run at the reference has measured it.
        """
        if "learning_rate" not in self.match:
            return []
        return [
            configuration("learning_rate", p, self.learning_rate * factors.get(p, 1.0) * step, TUNING_SEED)
            for p in self.exponents
            for step in GRID
        ]

    def compared(self, tuned: Mapping[float, float]) -> list[Configuration]:
        """The runs that are compared. tuned: the learning rate of each p, for `learning_rate`."""
        return [
            configuration(match, p, tuned[p] if match == "learning_rate" else self.learning_rate, seed)
            for match in self.match
            for p in self.exponents
            for seed in range(1, self.seeds + 1)
        ]


def configuration(match: str, p: float, learning_rate: float, seed: int) -> Configuration:
    """What decides a run beside the script and its arguments."""
    return {"match": match, "p": p, "learning_rate": float(f"{learning_rate:.4g}"), "seed": seed}


def name(of: Configuration) -> str:
    """The name of a run's directory."""
    return f"{of['match']}-p={of['p']:g}-lr={of['learning_rate']:g}-seed={of['seed']}"


def greater_is_better(metric: str) -> bool:
    """By a metric's name, as TrainingArguments have it for `metric_for_best_model`."""
    return not metric.endswith("loss")


def best(values: Mapping[float, float | None], *, greater: bool = False) -> float:
    """The learning rate with the best value; None is of a run that diverged. ValueError where all have."""
    finite = {rate: value for rate, value in values.items() if value is not None and math.isfinite(value)}
    if not finite:
        raise ValueError(f"No learning rate of {', '.join(f'{rate:g}' for rate in values)} led to a finite metric.")
    sign = -1 if greater else 1
    return min(finite, key=lambda rate: (sign * finite[rate], rate))


def optim_args(given: str | None, of: Configuration) -> str:
    """The `--optim_args` of a run: the script's own, but for p and update_scale."""
    items = [item.strip() for item in (given or "").split(",") if item.strip()]
    kept = [item for item in items if item.split("=")[0].strip() not in ("p", "update_scale")]
    ours = [f"p={of['p']:g}", *(["update_scale=adam"] if of["match"] == "update_scale" else [])]
    return ",".join([*ours, *kept])


def option(words: Sequence[str], wanted: str) -> str | None:
    """The last value of an option in the words of a script's command line; None where it has none."""
    found = None
    for i, word in enumerate(words):
        if word == wanted and i + 1 < len(words):
            found = words[i + 1]
        elif word.startswith(f"{wanted}="):
            found = word.partition("=")[2]
    return found
