"""Claim 9 (ours): which of the paper's effects are p's own, and which are the learning rate in disguise?

    python recipes/claim.py own_effect

A larger p makes every raw update larger, by orders of magnitude where second moments are small, so that a sweep
over p is also one over step sizes. Claims 4 and 5 again with update_scale=adam, where one factor for all parameters
gives every update the size that Adam's has, beside the same sweeps with the raw Eq. 18; and beside p = 0 over learning
rates, which is what step sizes do alone.

The paper's: prediction 1, that the update scale must be matched. Ours: all else.
"""

import math
from collections.abc import Sequence

import numpy as np

from hf_pdyn.sweep import statistics
from hf_pdyn.sweep.outcome import ALL_RULE, CONFIRMED, INCONCLUSIVE, NO_EFFECT, OPPOSITE, Outcome, all_of
from papers._claims import figures
from papers._claims.options import Options
from papers._claims.rows import Configuration, Row
from papers._claims.verdict import Part, Verdict
from papers.allocation import _fixed_p
from papers.allocation._fixed_p import (
    BOUND,
    BOUNDS,
    LOSSES,
    NORM,
    POINT,
    RATIOS,
    Effect,
    by,
    by_p,
    layer_effect,
    layer_ratios,
    table,
    update_ratio,
    usual,
)

EFFECTS = RATIOS | LOSSES
LARGE_EPS = 1e-8
"""Not of Adam: inside the power it corresponds to an epsilon of 1e-4 outside."""
RULE = f"""Every effect that claims 4 and 5 expect with p (three ratios fall, the median falls, two percentiles, the
standard deviation and the share above 5 rise) is judged raw and matched: confirmed where its trend is at one learning
rate or more, else opposite where it is at one, else no effect where it is none at more than half of them, else
inconclusive. {BOUNDS} The verdict is that of all effects that are confirmed raw, as they are matched: confirmed is p's
own, no effect or opposite the learning rate in disguise, else open; inconclusive where none is confirmed raw. Parts.
Each effect, matched. step sizes alone: with p = 0, every effect that is confirmed raw has a confirmed trend over
logarithms of learning rates. prediction 1: matched, the mean log of weight over bias-like update norm moves with p,
either way, at every learning rate; bound a factor of {_fixed_p.FACTOR:g}. accuracy: matched, test accuracy moves with
p, either way, at a learning rate or more; bound a point. norms: matched, the convolutions' norm rises with p, at every
learning rate. eps: with the largest p, at the largest learning rates, raw and matched, G_w/G_b and the 99th percentile
with eps = {LARGE_EPS:g} differ from those with 1e-16, either way, in at least one; the four outcomes are combined as
learning rates are. {ALL_RULE} {statistics.TREND_RULE} {statistics.EFFECT_RULE}"""
ACCURACY = Effect(+1, table("accuracy"), POINT)
OWN, DISGUISE, OPEN = "p's own", "the learning rate in disguise", "open"
SCALES = {"raw": "raw", "adam": "matched"}


def configurations(given: Options) -> list[Configuration]:
    """The sweeps over p, raw and matched, p = 0 over learning rates, and the ends with another eps."""
    ends = (given["exponents"][0], given["exponents"][-1])
    found = [
        *_fixed_p.configurations(given),
        *_fixed_p.configurations(given, "adam"),
        *_fixed_p.swept(given),
        *(
            one
            for scale in SCALES
            for one in _fixed_p.configurations(
                given, scale, exponents=ends, at=_fixed_p.rates(given, scale)[-1:], eps=LARGE_EPS
            )
        ),
    ]
    return _fixed_p.without_doubles(found)


def sweep(rows: Sequence[Row], given: Options, scale: str, lr: float) -> list[Row]:
    """Over p, at a learning rate."""
    found = usual(rows, update_scale=scale, lr=lr)
    return [row for row in found if row["configuration"]["p"] in given["exponents"]]


def swept(rows: Sequence[Row]) -> list[Row]:
    """p = 0 over learning rates."""
    return usual(rows, update_scale="raw", p=0.0)


def trends(rows: Sequence[Row], given: Options, effect: Effect, scale: str) -> dict[float, Outcome]:
    """The outcomes of an effect over p, by learning rate."""
    return {lr: effect.outcome(sweep(rows, given, scale, lr)) for lr in _fixed_p.rates(given, scale)}


def some_of(outcomes: Sequence[Outcome]) -> Outcome:
    """By RULE, of one effect at several learning rates."""
    for strong in (CONFIRMED, OPPOSITE):
        if strong in outcomes:
            return strong
    return NO_EFFECT if outcomes.count(NO_EFFECT) > len(outcomes) / 2 else INCONCLUSIVE


def kind(raw: Outcome, matched: Outcome) -> str:
    """What an effect is, by RULE."""
    if raw is CONFIRMED:
        return {CONFIRMED: OWN, INCONCLUSIVE: OPEN}.get(matched, DISGUISE)
    return f"raw {raw}, matched {matched}"


def judge(rows: Sequence[Row], given: Options) -> Verdict:
    """By RULE."""
    there = {
        name: tuple(some_of(list(trends(rows, given, effect, scale).values())) for scale in SCALES)
        for name, effect in EFFECTS.items()
    }
    of_raw = [matched for raw, matched in there.values() if raw is CONFIRMED]
    return Verdict(
        number=9,
        claim="The effects of p remain once the update scale is matched",
        paper="does not ask; prediction 1 says they should",
        measured="; ".join(f"{name}: {kind(*found)}" for name, found in there.items()),
        verdict=all_of(of_raw) if of_raw else INCONCLUSIVE,
        reason=f"{_fixed_p.data_of(rows)}; {_fixed_p.eps_shares(usual(rows))}. {_layers_apart(rows, given)}",
        parts={
            **{
                f"{name}, matched": Part(matched, f"{_told(rows, given, EFFECTS[name], 'adam')}; raw {raw}: "
                f"{_told(rows, given, EFFECTS[name], 'raw')}")
                for name, (raw, matched) in there.items()
            },
            "step sizes alone": _step_sizes(rows, [name for name, (raw, _) in there.items() if raw is CONFIRMED]),
            "prediction 1": _prediction_1(rows, given),
            "accuracy moves with p, matched": _accuracy(rows, given),
            "norms of convolutions rise with p, matched": Part(
                all_of(trends(rows, given, NORM, "adam").values()), _told(rows, given, NORM, "adam")
            ),
            f"eps = {LARGE_EPS:g} is another optimizer": _eps(rows, given),
        },
        figures=_figures(rows, given),
    )  # fmt: skip


def _told(rows: Sequence[Row], given: Options, effect: Effect, scale: str) -> str:
    """Its change from the first p to the last: a factor, or points of a share."""
    told = []
    for lr in _fixed_p.rates(given, scale):
        found = effect.trend(sweep(rows, given, scale, lr))
        told.append(f"{_change(found, effect)} at lr={lr:g}")
    return ", ".join(told)


def _change(found: statistics.Mean, effect: Effect) -> str:
    if effect.bound == POINT:
        return f"{100 * found.mean:+.2f} ± {100 * found.spread:.2f} points"
    return f"{math.exp(found.mean):.3g} ± {math.exp(found.mean) * found.spread:.2g} x"


def _step_sizes(rows: Sequence[Row], confirmed: Sequence[str]) -> Part:
    outcomes = {name: effect.outcome(swept(rows), "lr") for name, effect in EFFECTS.items()}
    rates = sorted({row["configuration"]["lr"] for row in swept(rows)})
    told = "; ".join(
        f"{name}: {_change(EFFECTS[name].trend(swept(rows), 'lr'), EFFECTS[name])}, {found}"
        for name, found in outcomes.items()
    )
    asked = [outcomes[name] for name in confirmed]
    return Part(
        all_of(asked) if asked else INCONCLUSIVE, f"p = 0, along a line from lr {rates[0]:g} to {rates[-1]:g}: {told}"
    )


def _prediction_1(rows: Sequence[Row], given: Options) -> Part:
    ratio = Effect(+1, update_ratio)
    found = {lr: ratio.trend(sweep(rows, given, "adam", lr)) for lr in _fixed_p.rates(given, "adam")}
    told = ", ".join(f"{_change(one, ratio)} at lr={lr:g}" for lr, one in found.items())
    outcome = all_of(statistics.difference(one, BOUND) for one in found.values())
    return Part(outcome, f"weight over bias-like update norm along p, matched: {told}")


def _accuracy(rows: Sequence[Row], given: Options) -> Part:
    found = [ACCURACY.trend(sweep(rows, given, "adam", lr)) for lr in _fixed_p.rates(given, "adam")]
    outcome = some_of([statistics.difference(one, POINT) for one in found])
    return Part(outcome, f"{_told(rows, given, ACCURACY, 'adam')}; raw {_told(rows, given, ACCURACY, 'raw')}")


def _eps(rows: Sequence[Row], given: Options) -> Part:
    p = given["exponents"][-1]
    outcomes, told = [], []
    for scale, word in SCALES.items():
        lr = _fixed_p.rates(given, scale)[-1]
        small, large = (usual(rows, update_scale=scale, lr=lr, p=p, eps=eps) for eps in (1e-16, LARGE_EPS))
        share = float(np.mean([row["result"]["eps_share"] for row in large]))
        for name in ("G_w/G_b falls", "99th percentile rises"):
            value = EFFECTS[name].value
            differences = by("p", large, value)[0] - by("p", small, value)[0]
            found = statistics.mean_of(differences)
            outcomes.append(statistics.difference(found, BOUND))
            told.append(f"{word} {name.rpartition(' ')[0]} {_change(found, EFFECTS[name])} ({outcomes[-1]})")
        told[-1] += f", second moments below it {share:.0%}"
    return Part(some_of(outcomes), f"p={p:g}: {'; '.join(told)}")


def _layers_apart(rows: Sequence[Row], given: Options) -> str:
    """Which layers go their own way, which a ratio of all of them hides."""
    told = []
    for scale, name in SCALES.items():
        for wanted, word in ((CONFIRMED, "falls"), (OPPOSITE, "rises")):
            layers = [
                layer
                for layer in layer_ratios(rows[0]["result"])
                if set(trends(rows, given, layer_effect(layer), scale).values()) == {wanted}
            ]
            told.append(f"{name}, it {word} in {', '.join(layers) or 'none'}")
    return f"Layers' own G_w/G_b, with p, at every learning rate: {'; '.join(told)}."


def _figures(rows: Sequence[Row], given: Options) -> dict[str, object]:
    return {
        f"{name}, {word}, lr={lr:g}": statistics.means_by_p(
            given["exponents"], by_p(sweep(rows, given, scale, lr), effect.value)
        )
        for name, effect in (EFFECTS | {"accuracy": ACCURACY, "norm": NORM}).items()
        for scale, word in SCALES.items()
        for lr in _fixed_p.rates(given, scale)
    }


DRAWN = {
    "G_w / G_b": EFFECTS["G_w/G_b falls"],
    "scale-invariant": EFFECTS["the scale-invariant ratio falls"],
    "median test loss": EFFECTS["median test loss falls"],
    "99th percentile": EFFECTS["99th percentile rises"],
}


def draw(rows: Sequence[Row], given: Options) -> None:
    """Effects over p, raw and matched, and as a control over learning rates with p = 0."""
    every = sorted({*_fixed_p.rates(given, "raw"), *_fixed_p.rates(given, "adam")})
    colour = dict(zip(every, figures.colours(len(every)), strict=True))
    style = {"marker": "o", "markersize": 3}
    with figures.panels(3, len(DRAWN), sharey="col") as (figure, grid):
        for column, (title, effect) in zip(grid.T, DRAWN.items(), strict=True):
            for axes, scale in zip(column, SCALES, strict=False):
                for lr in _fixed_p.rates(given, scale):
                    values = np.exp(by_p(sweep(rows, given, scale, lr), effect.value)).T
                    figures.band(axes, given["exponents"], values, color=colour[lr], label=f"lr = {lr:g}", **style)
                axes.set_xlabel("p")
            of_rates = swept(rows)
            rates = sorted({row["configuration"]["lr"] for row in of_rates})
            figures.band(column[-1], rates, np.exp(by("lr", of_rates, effect.value)).T, color="0.3", **style)
            column[-1].set(xlabel="learning rate", xscale="log")
            column[0].set_title(title)
            figures.logarithmic(column[0])
        for axes, name in zip(grid[:, 0], (*SCALES.values(), "control: p = 0"), strict=True):
            axes.set_ylabel(name)
        figures.control(grid[-1])
        figures.legend(figure)
        figures.save(figure, given.directory / "figure.png")


CLAIM = _fixed_p.claim(__name__, __doc__, RULE, configurations, judge, draw)
