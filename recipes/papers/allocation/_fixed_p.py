"""The runs behind claims 4 to 7, 9 and 11, and what is read from them: fixed p, over p, learning rate and seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_pdyn.sweep import statistics
from hf_pdyn.sweep.outcome import Outcome
from papers._claims.claim import Claim
from papers._claims.options import Option, Options
from papers._claims.rows import Configuration, Result, Row, chosen
from papers._claims.stacked_training import Training
from papers._claims.verdict import Verdict
from papers.allocation import _setting
from papers.allocation._setting import EXPONENTS, folder_of

__all__ = ["EXPONENTS", "folder_of"]

SEEDS = 6
"""With fewer, no permutation of the signs of their differences is rarer than 5 % on both sides."""
EXTREMES = (-0.4, 0.0, 0.3)
FACTOR, POINT = 1.1, 0.01
BOUND = math.log(FACTOR)
"""The bound of an effect on the logarithm of a ratio, a norm or a loss: less than a factor of 1.1 from p = -0.4 to
0.3 is none. The paper's are factors of 13 and 21 for G_w/G_b, of 75 for medians, of 1.5 to 2.4 for tails. POINT: on a
share."""


def numbers(words: str) -> tuple[float, ...]:
    """The numbers in a word such as -0.4,0,0.3."""
    return tuple(sorted(float(word) for word in words.split(",")))


OPTIONS = (
    *_setting.OPTIONS,
    Option("exponents", "values of p, as --exponents=-0.4,0,0.3", numbers, quick=EXPONENTS, full=EXPONENTS),
    Option("learning_rates", "of raw updates", numbers, quick=(0.1, 1.0), full=(0.1, 1.0)),
    Option("matched_rates", "of updates of Adam's size", numbers, quick=(0.003, 0.01), full=(0.003, 0.01)),
    Option(
        "swept_rates",
        "of raw updates with p = 0",
        numbers,
        quick=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
        full=(0.01, 0.1, 1.0),
    ),
)


def claim(
    module: str,
    doc: str | None,
    rule: str,
    configurations: Callable[[Options], Sequence[Configuration]],
    judge: Callable[[Sequence[Row], Options], Verdict],
    draw: Callable[[Sequence[Row], Options], None],
) -> Claim:
    """The claim of a module whose runs are of this kind."""
    return Claim(module, doc, rule, configurations, _setting.RUN, judge, draw, folder_of, OPTIONS, seeds=SEEDS)


def rates(given: Options, scale: str) -> tuple[float, ...]:
    """Learning rates at which p is swept."""
    return given["learning_rates" if scale == "raw" else "matched_rates"]


def configurations(
    given: Options,
    scale: str = "raw",
    *,
    exponents: Iterable[float] | None = None,
    at: Iterable[float] | None = None,
    **how: Any,
) -> list[Configuration]:
    """Every p, learning rate and seed, the extreme p first. how: other fields of `Training`."""
    found = [
        _setting.configuration(given, Training(p, lr, seed, update_scale=scale, **how), split=seed)
        for seed in range(given.seeds)
        for lr in (rates(given, scale) if at is None else at)
        for p in (given["exponents"] if exponents is None else exponents)
    ]
    return sorted(found, key=lambda one: one["p"] not in EXTREMES)


def extremes(given: Options) -> tuple[float, ...]:
    """The smallest p, 0 and the largest, of those that are swept."""
    exponents = given["exponents"]
    return tuple(sorted({exponents[0], 0.0, exponents[-1]}))


def swept(given: Options) -> list[Configuration]:
    """p = 0 over learning rates: what step sizes do alone."""
    return configurations(given, exponents=[0.0], at=given["swept_rates"])


def without_doubles(configurations: Sequence[Configuration]) -> list[Configuration]:
    """In the same order."""
    return [one for place, one in enumerate(configurations) if one not in configurations[:place]]


def usual(rows: Sequence[Row], **where: Any) -> list[Row]:
    """Those of the sweeps: cosine decay, one seed a split, the usual eps."""
    own = [row for row in rows if row["configuration"]["seed"] == row["configuration"]["split"]]
    return chosen(own, **({"lr_scheduler": "cosine", "eps": Training.eps} | where))


def by(key: str, rows: Sequence[Row], value: Callable[[Result], float | None], **where: object) -> np.ndarray:
    """A number of the results by a setting in ascending order and seed, (settings, seeds); NaN for None.

    where: what the configurations must have.
    """
    of_rows = chosen(rows, **where)
    settings = sorted({row["configuration"][key] for row in of_rows})
    return np.array([[value(row["result"]) for row in chosen(of_rows, **{key: x})] for x in settings], float)


def by_p(rows: Sequence[Row], value: Callable[[Result], float | None], **where: object) -> np.ndarray:
    """(p, seeds)."""
    return by("p", rows, value, **where)


def last(name: str) -> Callable[[Result], float | None]:
    """A curve's mean over the last epoch."""
    return lambda result: result["curves"][name][-1]


def final(result: Result) -> dict[str, Any]:
    """What was measured after the last epoch."""
    return result["measured"][max(result["measured"], key=int)]


def table(name: str, split: str = "test") -> Callable[[Result], float | None]:
    """A column of Table 2."""
    return lambda result: final(result)["table_2"][split][name]


def log(value: Callable[[Result], float | None]) -> Callable[[Result], float | None]:
    """The logarithm; None where there is none."""

    def found(result: Result) -> float | None:
        number = value(result)
        return math.log(number) if number else None

    return found


@dataclass(frozen=True)
class Effect:
    """What is expected of a quantity as p grows. direction: +1 or -1. bound: of no effect."""

    direction: int
    value: Callable[[Result], float | None]
    bound: float = BOUND

    def trend(self, rows: Sequence[Row], key: str = "p") -> statistics.Mean:
        """Its change from the first setting to the last."""
        settings = sorted({row["configuration"][key] for row in rows})
        return statistics.trend(np.log(settings) if key == "lr" else settings, by(key, rows, self.value))

    def outcome(self, rows: Sequence[Row], key: str = "p") -> Outcome:
        return statistics.effect(self.trend(rows, key), self.bound, direction=self.direction)


RATIOS = {
    "G_w/G_b falls": Effect(-1, log(last("G_w_over_G_b"))),
    "G_w/G_b by name falls": Effect(-1, log(last("by_name"))),
    "the scale-invariant ratio falls": Effect(-1, log(last("invariant"))),
}
"""By Table 1; by parameter name, as Fig. 3's "non-bias and bias parameters"; of convolutions, with their norms."""
NORM = Effect(+1, log(last("conv_norm")))
LOSSES = {
    "median test loss falls": Effect(-1, log(table("p50"))),
    "95th percentile rises": Effect(+1, log(table("p95"))),
    "99th percentile rises": Effect(+1, log(table("p99"))),
    "standard deviation rises": Effect(+1, log(table("std"))),
    "share above 5 rises": Effect(+1, table("share_above_5"), POINT),
}
BOUNDS = f"Bounds: a factor of {FACTOR:g} from the first p to the last, a point of a share."


def layer_ratios(result: Result, *, invariant: bool = False) -> dict[str, float | None]:
    """Each layer's own G_w/G_b in the last epoch; invariant: times its weight's norm."""
    return {name: _ratio(*numbers, invariant=invariant) for name, numbers in result["layers"].items()}


def _ratio(weight: float | None, bias: float | None, norm: float | None, *, invariant: bool) -> float | None:
    if weight is None or norm is None or not bias:
        return None
    return weight / bias * (norm if invariant else 1.0)


def layer_effect(layer: str, *, invariant: bool = False) -> Effect:
    """Its own ratio falls."""
    return Effect(-1, log(lambda result: layer_ratios(result, invariant=invariant)[layer]))


def update_ratio(result: Result) -> float:
    """The mean over epochs of the log of weight over bias-like update norm."""
    curves = result["curves"]
    return float(np.mean(np.log(np.array(curves["update_w"], float) / np.array(curves["update_b"], float))))


def epochs_of(rows: Sequence[Row]) -> np.ndarray:
    """The epochs of the points of a curve that rows keep."""
    points, epochs = len(rows[0]["result"]["curves"]["loss"]), rows[0]["configuration"]["epochs"]
    return np.linspace(epochs / points, epochs, points)


def eps_shares(rows: Sequence[Row]) -> str:
    """How many second moments lie below eps, in words."""
    shares = [row["result"]["eps_share"] for row in rows]
    return f"second moments below eps at the end: {max(shares):.2g} of all at most, {np.mean(shares):.2g} in the mean"


def data_of(rows: Sequence[Row]) -> str:
    """What was trained on, in words."""
    one = rows[0]["configuration"]
    return f"{one['train_images']} images of {one['data']}, width {one['network']['widths'][0]}"


def with_seed(configuration: Configuration, seed: int) -> Configuration:
    """The same images and setting with other initial weights and another order."""
    return dict(configuration) | {"seed": seed}
