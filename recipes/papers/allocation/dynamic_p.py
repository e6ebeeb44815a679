"""Claim 8: p that moves beats p = 0.5, and sooner (IAD 4.2, Fig. 6; predictions 3-5).

    python recipes/claim.py dynamic_p

Networks of the setting of claims 4 to 7 are trained with p fixed at 0.5, 0.25 and 0.6; falling from 0.45 to 0.35 and
from 0.6 to 0.5; steered by Algorithm 1; and by decisions at random, of the same number and step size. Each with the raw
Eq. 18 and with update_scale=adam, at every learning rate of a grid, of which the best is chosen for each strategy on
images that are neither trained nor tested on. Beside them p = 0.5 with a learning rate whose factor in every epoch
gives the mean update size that each moving p had: what a learning rate could have done instead.

The paper's: p = 0.5, 0.45 to 0.35 and 0.6 to 0.5, on RAF-DB and AffectNet7 with PosterV2, one learning rate, one run
each; and Algorithm 1. Ours: all else, Algorithm 1 in this place, and every control.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hf_pdyn.sweep import statistics
from hf_pdyn.sweep.outcome import ALL_RULE, all_of
from papers._claims import figures, paired
from papers._claims.claim import Claim
from papers._claims.options import Options
from papers._claims.rows import Result, Row
from papers._claims.verdict import Part, Verdict
from papers.allocation import _setting
from papers.allocation._exponents import ALGORITHM_1, RANDOM_SIGNS
from papers.allocation._strategies import (
    BASELINE,
    FALLING,
    MATCHED,
    MOVING,
    ONE_RATE,
    RUN,
    SCALES,
    STRATEGIES,
    VALIDATED_EVERY,
    accuracy,
    apart,
    at,
    best_fixed,
    configurations,
    last_validation,
    number,
    rates,
    tuned,
    tuned_rate,
)

GAIN, APART, FACTOR, SAVED, PROMPT, CENTRE = 0.005, 0.1, 1.05, 0.05, 2.0, 0.25
NEAR = 0.97
OPTIONS = _setting.options(quick={"epochs": 40, "test_images": 10000}, full={"train_images": 49000})
RULE = f"""Every strategy, raw and with update_scale=adam, has the learning rate with the best mean validation accuracy
after the last epoch; test accuracies after the last epoch are compared, seed by seed. With Algorithm 1 and with both
falling p, raw and matched, they are above those with p = 0.5. Bound: half a point. Parts. at one learning rate, raw:
the same at {ONE_RATE:g} for all. lr matched in size: there, every moving p is above p = 0.5 with the learning rate that
gives its mean update sizes. random signs: Algorithm 1 is above decisions at random, raw and matched. best fixed p: and
above the fixed p with the best validation accuracy. sooner: with Algorithm 1 and p 0.6 to 0.5, raw and matched, a share
of training is saved until both runs of a seed are at {NEAR:.0%} of the smaller of their two last validation accuracies.
Bound: {SAVED:g}. prediction 3: the share of epochs in which D_w and D_b of p = 0.5 change in opposite directions is
above {APART:g}. Bound: {APART / 2:g}. prediction 4: raw, at {ONE_RATE:g}, between every moving p and the learning rate
matched to it, the mean log of weight over bias-like update norm, the mean log of D_b, and the first epoch at {NEAR:.0%}
of the run's own last validation accuracy differ, either way. Bounds: factors of {FACTOR:g}, and {PROMPT:g} epochs.
prediction 5: there, between a falling p and the learning rate matched to it, the epoch around which update norms centre
moves, either way, for normalisation, and for the classifier's bias the same way as the mean of that. Bound: {CENTRE:g}
epochs. {ALL_RULE} {paired.PAIRED_RULE}"""


def gains(rows: Sequence[Row]) -> dict[tuple[str, str], np.ndarray]:
    """In test accuracy over p = 0.5, each at its own learning rate, by scale and strategy."""
    return {
        (scale, name): apart(tuned(rows, name, scale), tuned(rows, BASELINE, scale))
        for scale in SCALES
        for name in STRATEGIES
        if name != BASELINE
    }


def epoch_at(result: Result, accuracy: float) -> float:
    """The first validated epoch with a validation accuracy as high; NaN where none is."""
    reached = np.flatnonzero(np.array(result["validation_accuracy"]) >= accuracy)
    return float(VALIDATED_EVERY * (reached[0] + 1)) if len(reached) else np.nan


def prompt_epoch(result: Result) -> float:
    """The first validated epoch near its own last validation accuracy."""
    return epoch_at(result, NEAR * last_validation(result))


def saved(one: Result, other: Result) -> float:
    """The share of training by which one is sooner than the other near the smaller of their last accuracies."""
    accuracy = NEAR * min(last_validation(one), last_validation(other))
    epochs = VALIDATED_EVERY * len(one["validation_accuracy"])
    return (epoch_at(other, accuracy) - epoch_at(one, accuracy)) / epochs


KINDS: dict[str, tuple[float, Callable[[Result], float]]] = {
    "log update ratio": (float(np.log(FACTOR)), number("log_update_ratio")),
    "log D_b": (float(np.log(FACTOR)), number("log_D_b")),
    f"epoch at {NEAR:.0%} of its last accuracy": (PROMPT, prompt_epoch),
}
"""By what trajectories differ, with the bounds of prediction 4."""


def parts(rows: Sequence[Row]) -> dict[str, Part]:
    """By RULE."""
    raw = functools.partial(at, rows, scale="raw", lr=ONE_RATE)
    usual = raw(BASELINE)
    fixed = {scale: best_fixed(rows, scale) for scale in SCALES}
    return {
        "at one learning rate, raw": _above({name: apart(raw(name), usual) for name in MOVING}),
        "lr matched in size": _above({name: apart(raw(name), raw(of)) for of, name in _matched_moving()}),
        "random signs": _above({
            scale: apart(tuned(rows, ALGORITHM_1, scale), tuned(rows, RANDOM_SIGNS, scale)) for scale in SCALES
        }),
        "best fixed p": _above({
            f"{scale}, {name}": apart(tuned(rows, ALGORITHM_1, scale), tuned(rows, name, scale))
            for scale, name in fixed.items()
        }),
        "sooner": _sooner(rows),
        "prediction 3": _asynchronous(rows),
        **{f"prediction 4, {kind}": _differs(rows, kind) for kind in KINDS},
        "prediction 5": _bias_like_together(rows),
    }  # fmt: skip


def _matched_moving() -> list[tuple[str, str]]:
    return [(of, name) for of, name in MATCHED.items() if name in MOVING]


def _above(differences: dict[str, np.ndarray]) -> Part:
    """The part of a verdict about differences of accuracies."""
    outcomes = {name: paired.effect(found, GAIN) for name, found in differences.items()}
    told = ", ".join(f"{name} {points(found)} ({outcomes[name]})" for name, found in differences.items())
    return Part(all_of(outcomes.values()), f"percentage points more: {told}")


def points(differences: np.ndarray) -> str:
    """Differences of accuracy in percentage points, as text."""
    found = statistics.mean_of(100 * differences)
    return f"{found.mean:+.2f} ± {found.spread:.2f}"


def _sooner(rows: Sequence[Row]) -> Part:
    found = {
        f"{name}, {scale}": np.array([
            saved(one, other)
            for one, other in zip(tuned(rows, name, scale), tuned(rows, BASELINE, scale), strict=True)
        ])
        for scale in SCALES
        for name in (ALGORITHM_1, "p 0.6 to 0.5")
    }  # fmt: skip
    told = ", ".join(f"{name} {statistics.mean_of(values)}" for name, values in found.items())
    outcomes = [paired.effect(values, SAVED) for values in found.values()]
    return Part(all_of(outcomes), f"share of training saved: {told}")


def _asynchronous(rows: Sequence[Row]) -> Part:
    found = np.array([number("opposite_changes")(result) for result in tuned(rows, BASELINE, "raw")])
    return Part(paired.effect(found - APART, APART / 2), f"opposite changes in {statistics.mean_of(found)} of epochs")


def _differs(rows: Sequence[Row], kind: str) -> Part:
    bound, value = KINDS[kind]
    raw = functools.partial(at, rows, scale="raw", lr=ONE_RATE)
    moved = {name: apart(raw(name), raw(of), value) for of, name in _matched_moving()}
    told = ", ".join(f"{name} {statistics.mean_of(found)}" for name, found in moved.items())
    outcome = all_of(paired.difference(found, bound) for found in moved.values())
    return Part(outcome, f"change against the learning rate matched to it: {told}")


def _bias_like_together(rows: Sequence[Row]) -> Part:
    raw = functools.partial(at, rows, scale="raw", lr=ONE_RATE)
    outcomes, told = [], []
    for name in FALLING:
        norms, bias = (apart(raw(name), raw(f"lr matched to {name}"), _centre(kind)) for kind in ("norm", "bias"))
        outcomes += [
            paired.difference(norms, CENTRE),
            paired.effect(bias, CENTRE, direction=1 if norms.mean() > 0 else -1),
        ]
        told.append(f"{name}: norms {statistics.mean_of(norms)}, classifier's bias {statistics.mean_of(bias)}")
    return Part(all_of(outcomes), f"epochs that update norms move by: {', '.join(told)}")


def _centre(kind: str) -> Callable[[Result], float]:
    return lambda result: np.nan if result["update_centre"][kind] is None else result["update_centre"][kind]


def judge(rows: Sequence[Row], given: Options) -> Verdict:
    """By RULE."""
    found = gains(rows)
    outcomes = {(scale, name): paired.effect(found[scale, name], GAIN) for scale in SCALES for name in MOVING}
    told = ", ".join(f"{name} {scale} {points(found[scale, name])} ({of})" for (scale, name), of in outcomes.items())
    best = statistics.mean_of([100 * accuracy(result) for result in tuned(rows, BASELINE, "raw")])
    return Verdict(
        number=8,
        claim="Dynamic p raises accuracy, and gets there sooner",
        paper="RAF-DB 92.21 to 92.37 (0.45 to 0.35), AffectNet7 67.49 to 67.61 (0.6 to 0.5), with half of the "
        "steps; one run each, one learning rate",
        measured=f"test accuracy {best} % with p = 0.5; percentage points more, learning rates tuned: {told}",
        verdict=all_of(outcomes.values()),
        reason=_where_algorithm_1_goes(rows),
        parts=parts(rows),
        figures={
            f"{name}, {scale}": _figures(rows, name, scale)
            for name in STRATEGIES
            for scale in (SCALES if name != BASELINE else ("raw",))
        }
        | {
            name: {
                "test accuracy": _mean(found_of := at(rows, name, "raw", ONE_RATE), accuracy),
                "update size matched within": float(max(number("matched_within")(one) for one in found_of)),
            }
            for name in MATCHED
        },
    )


def _figures(rows: Sequence[Row], strategy: str, scale: str) -> dict[str, Any]:
    lr, tried = tuned_rate(rows, strategy, scale), rates(strategy, scale)
    of = tuned(rows, strategy, scale)
    return {
        "learning rate": lr,
        "at the end of the grid": lr in (tried[0], tried[-1]),
        **{f"test accuracy at {rate:g}": _mean(at(rows, strategy, scale, rate), accuracy) for rate in tried},
        "train accuracy": _mean(of, number("train_accuracy")),
        "last p": _mean(of, number("last_p")),
    }


def _mean(results: Sequence[Result], value: Callable[[Result], float]) -> str:
    return str(statistics.mean_of([value(one) for one in results]))


def _where_algorithm_1_goes(rows: Sequence[Row]) -> str:
    means = {
        scale: statistics.mean_of([number("mean_p")(one) for one in tuned(rows, ALGORITHM_1, scale)])
        for scale in SCALES
    }
    return "Algorithm 1's p, mean over training: " + ", ".join(f"{mean} {scale}" for scale, mean in means.items()) + "."


def draw(rows: Sequence[Row], given: Options) -> None:
    """Gains at each one's own learning rate; accuracy over learning rates; and where p goes."""
    others = [name for name in STRATEGIES if name != BASELINE]
    colours = {BASELINE: "0.3", **{name: f"C{i}" for i, name in enumerate(others)}}
    found = gains(rows)
    with figures.panels(2, 2, height=2.6) as (figure, grid):
        for (bars, lines), scale in zip(grid.T, SCALES, strict=True):
            title = "raw" if scale == "raw" else "matched"
            for place, name in enumerate(others):
                gain = statistics.mean_of(100 * found[scale, name])
                low, high = gain.interval
                bars.barh(place, gain.mean, 0.6, xerr=[[gain.mean - low], [high - gain.mean]], color=colours[name])
            bars.set_yticks(range(len(others)), others)
            bars.axvline(0, color="0.3", linewidth=0.8)
            bars.set(title=f"{title}: points above p = 0.5, tuned")
            bars.locator_params(axis="x", nbins=4)
            for name in STRATEGIES:
                of = rates(name, scale)
                values = np.array([[100 * accuracy(one) for one in at(rows, name, scale, lr)] for lr in of]).T
                figures.band(lines, of, values, color=colours[name], marker="o", markersize=3, label=name)
            lines.set(title=f"{title}: test accuracy (%)", xscale="log", xlabel="learning rate")
        figures.legend(figure)
        figures.save(figure, given.directory / "figure.png")


CLAIM = Claim(__name__, __doc__, RULE, configurations, RUN, judge, draw, options=OPTIONS, seeds=paired.FEWEST_SEEDS)
