"""The strategies of claim 8: fixed, falling, steered and random p, raw and matched, over learning rates."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hf_pdyn.policy.schedules import Schedule
from papers._claims.options import Options
from papers._claims.rows import Configuration, Result, Row, chosen
from papers._claims.stacked_training import Training
from papers._claims.sweep import WorkTogether
from papers.allocation import _setting
from papers.allocation._exponents import ALGORITHM_1, RANDOM_SIGNS, Decisions, decision
from papers.allocation._matching import match_update_sizes, update_sizes

BASELINE = "p = 0.5"
FALLING = {"p 0.45 to 0.35": "linear:0.45..0.35", "p 0.6 to 0.5": "linear:0.6..0.5"}
MOVING = (*FALLING, ALGORITHM_1)
FIXED = {BASELINE: "0.5", "p = 0.25": "0.25", "p = 0.6": "0.6"}
STRATEGIES = {**FIXED, **FALLING, ALGORITHM_1: ALGORITHM_1, RANDOM_SIGNS: RANDOM_SIGNS}
"""By name: a schedule over epochs, or who decides."""
MATCHED = {f"lr matched to {name}": name for name in (*MOVING, RANDOM_SIGNS)}
SCALES = ("raw", "adam")
RATES: dict[str, tuple[float, ...]] = {
    BASELINE: (3e-3, 1e-2, 3e-2, 1e-1),
    "p = 0.25": (1e-2, 3e-2, 1e-1, 3e-1, 1.0),
    "p = 0.6": (3e-4, 1e-3, 3e-3, 1e-2),
    "p 0.45 to 0.35": (3e-3, 1e-2, 3e-2, 1e-1),
    "p 0.6 to 0.5": (1e-3, 3e-3, 1e-2, 3e-2),
    ALGORITHM_1: (1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    RANDOM_SIGNS: (1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
}
"""Learning rates of raw strategies are around the best of a pilot with one draw of images that is not compared; those
of matched ones, whose updates all have Adam's size, are the baseline's. Three have a fifth one, since of four the
largest was the best."""
ONE_RATE = 3e-3
"""At which raw strategies are compared as the paper does, and to learning rates of matched update size."""
MATCHING_ROUNDS = 4
VALIDATED_EVERY = 2
"""Epochs."""


def rates(strategy: str, scale: str) -> tuple[float, ...]:
    """Those that a strategy is trained at."""
    return RATES[strategy if scale == "raw" else BASELINE]


def configurations(given: Options) -> list[Configuration]:
    """Seed by seed those that tune, then seed by seed those with a matched learning rate, which take several rounds."""
    tuned = [
        _configuration(given, strategy, scale, lr, seed)
        for seed in range(given.seeds)
        for strategy in STRATEGIES
        for scale in (SCALES if strategy != BASELINE else ("raw",))  # with p = 0.5 they are the same
        for lr in rates(strategy, scale)
    ]
    matched = [
        _configuration(given, name, "raw", ONE_RATE, seed) | {"matching_rounds": MATCHING_ROUNDS}
        for seed in range(given.seeds)
        for name in MATCHED
    ]
    return [*tuned, *matched]


def _configuration(given: Options, strategy: str, scale: str, lr: float, seed: int) -> Configuration:
    training = Training(_first_p(strategy), lr, seed, update_scale=scale)
    return {**_setting.configuration(given, training, split=seed), "strategy": strategy}


def _first_p(strategy: str) -> float:
    who = STRATEGIES.get(strategy)
    return 0.5 if who in (None, ALGORITHM_1, RANDOM_SIGNS) else Schedule.parse(str(who)).values[0]


def run_together(configurations: Sequence[Configuration], given: Options) -> list[Result]:
    """Train them; those with a matched learning rate after what they are matched to."""
    plain = [one for one in configurations if one["strategy"] not in MATCHED]
    matched = [one for one in configurations if one["strategy"] in MATCHED]
    found = dict(zip(map(_key, plain), _train(plain, given), strict=True)) if plain else {}
    found |= dict(zip(map(_key, matched), _match(matched, given), strict=True)) if matched else {}
    return [_kept(found[_key(one)]) for one in configurations]


def _key(one: Configuration) -> tuple[Any, ...]:
    return tuple(one[name] for name in ("strategy", "update_scale", "lr", "seed"))


def _match(configurations: Sequence[Configuration], given: Options) -> list[Result]:
    copied = [_as(one, MATCHED[one["strategy"]]) for one in configurations]
    usual = [_as(one, BASELINE) for one in configurations]
    sizes = [np.stack([update_sizes(found) for found in _train(of, given)]) for of in (copied, usual)]

    def train(factors: np.ndarray) -> list[Result]:
        return _train([one | {"lr_factors": of.tolist()} for one, of in zip(usual, factors, strict=True)], given)

    return match_update_sizes(train, *sizes, configurations[0]["matching_rounds"])


def _as(one: Configuration, strategy: str) -> Configuration:
    return one | {"strategy": strategy, "p": _first_p(strategy)}


def _train(configurations: Sequence[Configuration], given: Options) -> list[Result]:
    move = Decisions([
        decision(STRATEGIES[one["strategy"]], one["p"], one["epochs"], one["seed"]) for one in configurations
    ])  # fmt: skip
    return _setting.train(configurations, given, move=move, validated_every=VALIDATED_EVERY)


def _kept(result: Result) -> Result:
    """What rules and figures read, None for what is no number."""
    curves = {name: np.array(values, float) for name, values in result["curves"].items()}
    changes = np.diff([curves["D_w"], curves["D_b"]])
    last = result["measured"][max(result["measured"], key=int)]["table_2"]
    return {
        "validation_accuracy": result["validation_accuracy"],
        "test_accuracy": last["test"]["accuracy"],
        "test_loss": last["test"]["mean"],
        "train_accuracy": last["train"]["accuracy"],
        "update_centre": result["update_centre"],
        "opposite_changes": short(np.mean(changes[0] * changes[1] < 0)),
        "log_update_ratio": short(np.mean(np.log(curves["update_w"] / curves["update_b"]))),
        "log_D_b": short(np.mean(np.log(curves["D_b"]))),
        "mean_p": short(curves["p"].mean()),
        "last_p": short(curves["p"][-1]),
        **({"matched_within": short(result["matched_within"])} if "matched_within" in result else {}),
    }


def short(value: Any) -> float | None:
    """A number as it is kept in rows."""
    return float(f"{value:.5g}") if np.isfinite(value) else None


RUN = WorkTogether(run_together)


def last_validation(result: Result) -> float:
    """The validation accuracy after the last epoch."""
    return float(result["validation_accuracy"][-1])


def number(name: str) -> Callable[[Result], float]:
    """Reads a number of results, NaN where it is none."""
    return lambda result: np.nan if result[name] is None else float(result[name])


def accuracy(result: Result) -> float:
    """On the test images after the last epoch; NaN for a network whose losses are no numbers."""
    return np.nan if result["test_loss"] is None else float(result["test_accuracy"])


def at(rows: Sequence[Row], strategy: str, scale: str, lr: float) -> list[Result]:
    """Results of a strategy at a learning rate, by seed."""
    of = "raw" if strategy == BASELINE else scale
    return [row["result"] for row in chosen(rows, strategy=strategy, update_scale=of, lr=lr)]


def tuned_rate(rows: Sequence[Row], strategy: str, scale: str) -> float:
    """The learning rate with the best mean validation accuracy; of equals the smallest."""
    means = {
        lr: np.mean([last_validation(one) for one in at(rows, strategy, scale, lr)]) for lr in rates(strategy, scale)
    }
    return max(means, key=lambda lr: (means[lr], -lr))


def tuned(rows: Sequence[Row], strategy: str, scale: str) -> list[Result]:
    """Results at its own learning rate, by seed."""
    return at(rows, strategy, scale, tuned_rate(rows, strategy, scale))


def best_fixed(rows: Sequence[Row], scale: str) -> str:
    """The fixed p with the best mean validation accuracy at its learning rate."""
    return max(FIXED, key=lambda name: np.mean([last_validation(one) for one in tuned(rows, name, scale)]))


def apart(ones: Sequence[Result], others: Sequence[Result], value: Callable[[Result], float] = accuracy) -> np.ndarray:
    """By how much a number of ones exceeds that of others, seed by seed."""
    return np.array([value(one) - value(other) for one, other in zip(ones, others, strict=True)], float)
