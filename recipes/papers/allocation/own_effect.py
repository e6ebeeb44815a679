"""Claim 9 (ours): which of the paper's effects are p's own, and which are the learning rate in disguise?

    python recipes/claim.py own_effect

A larger p makes every raw update larger, by orders of magnitude where second moments are small, so that a sweep
over p is also one over step sizes. Claims 4, 5 and 8 again with update_scale=adam, where one factor for all
parameters gives every update the size that Adam's has, beside the same sweeps with the raw Eq. 18; and beside p = 0
over learning rates, which is what step sizes do alone.

The paper's: prediction 1, that the update scale must be matched. Ours: all else.
"""

from collections.abc import Callable, Sequence

import numpy as np

from hf_pdyn.sweep import statistics
from hf_pdyn.sweep.outcome import ALL_RULE, CONFIRMED, INCONCLUSIVE, NO_EFFECT, OPPOSITE, Outcome, all_of
from papers._claims import figures
from papers._claims.claim import Claim
from papers._claims.options import Options
from papers._claims.rows import Configuration, Result, Row, chosen
from papers._claims.verdict import Part, Verdict
from papers.allocation import _fixed_p, dynamic_p
from papers.allocation._fixed_p import (
    BOUND,
    EXPONENTS,
    FACTOR,
    MATCHED_RATES,
    by,
    by_p,
    final_ratio,
    log_trend,
    mean_layer_ratio,
    short,
    update_ratio,
)

RULE = f"""Every effect, the logarithm of whose quantity has a trend over p, is judged raw and matched: confirmed
where its trend is at one learning rate or more, else opposite where it is at one, else no effect where it is none at
more than half of them, else inconclusive. Bound: a factor of {FACTOR:g}. Dynamic p raises accuracy by the rule of
claim 8. The verdict is that of all effects that are confirmed raw, as they are matched: confirmed is p's own, no
effect or opposite the learning rate in disguise, else open; inconclusive where none is confirmed raw. Parts. step
sizes alone: with p = 0, every effect that is in disguise or open has a confirmed trend over logarithms of learning
rates. prediction 1: matched, the mean log of weight over bias-like update norm moves with p, either way, at every
learning rate; the same bound. {ALL_RULE} {statistics.TREND_RULE} {statistics.EFFECT_RULE}"""
SWEPT_RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""With p = 0."""


def loss(name: str) -> Callable[[Result], float | None]:
    """A column of Table 2, of the test set."""
    return lambda result: result["table_2"]["test"][name]


TRENDS: dict[str, tuple[int, Callable[[Result], float | None]]] = {
    "G_w/G_b falls": (-1, final_ratio),
    "G_w/G_b falls by layer (geometric mean)": (-1, mean_layer_ratio),
    "median test loss falls": (-1, loss("p50")),
    "95th percentile rises": (+1, loss("p95")),
    "99th percentile rises": (+1, loss("p99")),
}
"""By effect: the direction, and what goes that way with p."""
DYNAMIC = "dynamic p raises accuracy"
OWN, DISGUISE, OPEN = "p's own", "the learning rate in disguise", "open"


def configurations(given: Options) -> list[Configuration]:
    """The sweeps of claims 4 and 8, raw and matched, and p = 0 over learning rates."""
    found = [
        *_fixed_p.configurations(given),
        *_fixed_p.configurations(given, rates=MATCHED_RATES, update_scale="adam"),
        *_fixed_p.configurations(given, rates=SWEPT_RATES, exponents=[0.0]),
        *dynamic_p.configurations(given),
        *dynamic_p.configurations(given, update_scale="adam"),
    ]
    return [one for place, one in enumerate(found) if one not in found[:place]]


def run(configuration: Configuration, given: Options) -> Result:
    """One run of either."""
    return (dynamic_p if "strategy" in configuration else _fixed_p).run(configuration, given)


def rates(given: Options, scale: str) -> tuple[float, ...]:
    """Those at which p was swept."""
    return _fixed_p.learning_rates(given) if scale == "raw" else MATCHED_RATES


def fixed(rows: Sequence[Row], scale: str) -> list[Row]:
    """The rows of claim 4's sweep."""
    return [row for row in chosen(rows, update_scale=scale) if "strategy" not in row["configuration"]]


def dynamic(rows: Sequence[Row], scale: str) -> list[Row]:
    """The rows of claim 8."""
    return [row for row in chosen(rows, update_scale=scale) if "strategy" in row["configuration"]]


def trends(rows: Sequence[Row], given: Options, effect: str, scale: str) -> dict[float, Outcome]:
    """Of an effect over p, by learning rate."""
    direction, value = TRENDS[effect]
    return {
        lr: statistics.effect(log_trend(by_p(fixed(rows, scale), value, lr=lr)), BOUND, direction=direction)
        for lr in rates(given, scale)
    }


def outcome(rows: Sequence[Row], given: Options, effect: str, scale: str) -> Outcome:
    """Of an effect over all learning rates, by RULE."""
    if effect == DYNAMIC:
        return dynamic_p.outcome_of_gains(dynamic(rows, scale))
    return some_of(list(trends(rows, given, effect, scale).values()))


def some_of(outcomes: Sequence[Outcome]) -> Outcome:
    """By RULE, of one effect at several learning rates."""
    for strong in (CONFIRMED, OPPOSITE):
        if strong in outcomes:
            return strong
    return NO_EFFECT if outcomes.count(NO_EFFECT) > len(outcomes) / 2 else INCONCLUSIVE


def by_learning_rate(rows: Sequence[Row], effect: str) -> np.ndarray:
    """What step sizes do alone to an effect's quantity: with p = 0, (SWEPT_RATES, seeds)."""
    _, value = TRENDS[effect]
    swept = [row for row in fixed(rows, "raw") if row["configuration"]["lr"] in SWEPT_RATES]
    return by("lr", swept, value, p=0.0)


def kind(raw: Outcome, matched: Outcome) -> str:
    """What an effect is, by RULE."""
    if raw is CONFIRMED:
        return {CONFIRMED: OWN, INCONCLUSIVE: OPEN}.get(matched, DISGUISE)
    return f"raw {raw}, matched {matched}"


def judge(rows: Sequence[Row], given: Options) -> Verdict:
    """By RULE."""
    there = {
        effect: (outcome(rows, given, effect, "raw"), outcome(rows, given, effect, "adam"))
        for effect in (*TRENDS, DYNAMIC)
    }
    kinds = {effect: kind(*found) for effect, found in there.items()}
    of_raw = [matched for raw, matched in there.values() if raw is CONFIRMED]
    return Verdict(
        number=9,
        claim="The effects of p remain once the update scale is matched",
        paper="does not ask; prediction 1 says they should",
        measured="; ".join(f"{effect}: {found}" for effect, found in kinds.items()),
        verdict=all_of(of_raw) if of_raw else INCONCLUSIVE,
        reason=_layers_apart(rows, given),
        parts={
            **{f"{effect} when matched": Part(matched, f"{raw} raw") for effect, (raw, matched) in there.items()},
            "step sizes alone": _step_sizes(rows, [e for e, found in kinds.items() if found in (DISGUISE, OPEN)]),
            "prediction 1": _prediction_1(rows),
            **{f"claim 8 matched, {name}": part for name, part in dynamic_p.parts(dynamic(rows, "adam")).items()},
        },
        figures=_figures(rows, given),
    )


def over_learning_rates(rows: Sequence[Row], effect: str) -> Outcome:
    """Whether an effect's quantity goes the same way with the learning rate, where p is 0."""
    direction, _ = TRENDS[effect]
    found = statistics.trend(np.log(SWEPT_RATES), np.log(by_learning_rate(rows, effect)))
    return statistics.effect(found, BOUND, direction=direction)


def _step_sizes(rows: Sequence[Row], effects: Sequence[str]) -> Part:
    swept = {effect: over_learning_rates(rows, effect) for effect in TRENDS}
    asked = [swept[effect] for effect in effects if effect in swept]
    told = "; ".join(f"{effect}: {found}" for effect, found in swept.items())
    return Part(
        all_of(asked) if asked else INCONCLUSIVE, f"p = 0, lr from {SWEPT_RATES[0]:g} to {SWEPT_RATES[-1]:g}: {told}"
    )


def _prediction_1(rows: Sequence[Row]) -> Part:
    moves = {lr: statistics.trend(EXPONENTS, by_p(fixed(rows, "adam"), update_ratio, lr=lr)) for lr in MATCHED_RATES}
    told = ", ".join(f"{found} at lr={lr:g}" for lr, found in moves.items())
    return Part(
        all_of(statistics.difference(found, BOUND) for found in moves.values()),
        f"change of log of weight over bias-like update norm from p=-0.4 to 0.3, matched: {told}",
    )


def _layers_apart(rows: Sequence[Row], given: Options) -> str:
    """Which layers go their own way, which a ratio of all of them hides."""
    told = []
    for scale, name in (("raw", "raw"), ("adam", "matched")):
        of_rates = [_fixed_p.falls_by_layer(fixed(rows, scale), lr=lr) for lr in rates(given, scale)]
        for wanted, word in ((CONFIRMED, "falls"), (OPPOSITE, "rises")):
            layers = [layer for layer in of_rates[0] if _mostly([found[layer] for found in of_rates], wanted)]
            told.append(f"{name}, it {word} in {', '.join(map(short, layers)) or 'none'}")
    return f"Layers' own G_w/G_b, with p, at more than half of the learning rates: {'; '.join(told)}."


def _mostly(outcomes: Sequence[Outcome], wanted: Outcome) -> bool:
    return outcomes.count(wanted) > len(outcomes) / 2


def _figures(rows: Sequence[Row], given: Options) -> dict[str, object]:
    found: dict[str, object] = {}
    for effect, (_, value) in TRENDS.items():
        for scale in ("raw", "adam"):
            for lr, outcome_ in trends(rows, given, effect, scale).items():
                found[f"{effect}, {scale}, lr={lr:g}"] = _summary(by_p(fixed(rows, scale), value, lr=lr), outcome_)
        found[f"{effect}, p=0 over lr"] = _summary(by_learning_rate(rows, effect), over_learning_rates(rows, effect))
    for scale in ("raw", "adam"):
        gains = {name: str(dynamic_p.gain(dynamic(rows, scale), name)) for name in dynamic_p.STRATEGIES[1:]}
        found[f"{DYNAMIC}, {scale}"] = gains
    return found


def _summary(values: np.ndarray, outcome_: Outcome) -> dict[str, object]:
    return {"from first to last": [str(statistics.mean_of(values[i])) for i in (0, -1)], "outcome": outcome_}


def draw(rows: Sequence[Row], given: Options) -> None:
    """Each effect over p, raw and matched, and as a control over learning rates with p = 0; `updates.png`: the rest."""
    _draw_updates(rows, given)
    titles = {
        "G_w/G_b falls": "G_w / G_b",
        "G_w/G_b falls by layer (geometric mean)": "its mean over layers",
        "median test loss falls": "median test loss",
        "99th percentile rises": "99th percentile",
    }
    with figures.panels(3, len(titles), sharey="col") as (figure, grid):
        for column, (effect, title) in zip(grid.T, titles.items(), strict=True):
            for axes, scale in zip(column, SCALES, strict=False):
                for lr in rates(given, scale):
                    values = by_p(fixed(rows, scale), TRENDS[effect][1], lr=lr).T
                    figures.band(axes, EXPONENTS, values, color=_colour(lr), **STYLE)
                axes.set_xlabel("p")
            figures.band(column[-1], SWEPT_RATES, by_learning_rate(rows, effect).T, color="0.3", **STYLE)
            column[-1].set(xlabel="learning rate", xscale="log")
            column[0].set_title(title)
            figures.logarithmic(column[0])
        for axes, name in zip(grid[:, 0], (*SCALES.values(), "control: p = 0"), strict=True):
            axes.set_ylabel(name)
        figures.control(grid[-1])
        for lr in DRAWN_RATES:
            grid[0, 0].plot([], [], color=_colour(lr), label=f"lr = {lr:g}", **STYLE)
        figures.legend(figure, columns=len(DRAWN_RATES))
        figures.save(figure, given.directory / "figure.png")


SCALES = {"raw": "raw", "adam": "matched"}
STYLE = {"marker": "o", "markersize": 3}


DRAWN_RATES = sorted({*_fixed_p.QUICK_RATES, *MATCHED_RATES})


def _colour(lr: float) -> object:
    return figures.colours(len(DRAWN_RATES))[DRAWN_RATES.index(lr)]


def _draw_updates(rows: Sequence[Row], given: Options) -> None:
    """What moving p gains, raw and matched; and how p moves the ratio of updates, matched."""
    strategies = dynamic_p.STRATEGIES[1:]
    with figures.panels(1, 3, height=2.6) as (figure, (panels,)):
        for axes, (scale, name) in zip(panels, SCALES.items(), strict=False):
            gains = [dynamic_p.gain(dynamic(rows, scale), strategy) for strategy in strategies]
            colours = ["0.6" if strategy in dynamic_p.MATCHED else "C0" for strategy in strategies]
            errors = [100 * gain.spread for gain in gains]
            axes.barh(range(len(gains)), [100 * gain.mean for gain in gains], xerr=errors, color=colours)
            axes.set(title=f"accuracy, {name}", xlabel="points over p = 0.5")
            axes.set_yticks(range(len(gains)), strategies if scale == "raw" else [], fontsize=8)
        panels[1].sharex(panels[0])
        for lr in MATCHED_RATES:
            values = by_p(fixed(rows, "adam"), update_ratio, lr=lr).T
            figures.band(panels[2], EXPONENTS, values, color=_colour(lr), label=f"lr = {lr:g}", **STYLE)
        panels[2].set(title="log update ratio, matched", xlabel="p")
        figures.legend(figure)
        figures.save(figure, given.directory / "updates.png")


CLAIM = Claim(
    __name__,
    __doc__,
    RULE,
    configurations,
    run,
    judge,
    draw,
    _fixed_p.folder_of,
    (*_fixed_p.OPTIONS, *dynamic_p.OPTIONS),
)
