"""Claim 9 (ours): which of the paper's effects are p's own, and which are the learning rate in disguise?

    python recipes/claim.py own_effect

A larger p makes every raw update larger, by orders of magnitude where second moments are small, so that a sweep
over p is also one over step sizes. Claims 4, 5 and 8 again with update_scale=adam, where one factor for all
parameters gives every update the size that Adam's has, beside the same sweeps with the raw Eq. 18; and beside p = 0
over learning rates, which is what step sizes do alone.
"""

from collections.abc import Callable, Sequence

import numpy as np

from papers._claims import figures, statistics
from papers._claims.claim import Claim
from papers._claims.options import Options
from papers._claims.rows import Configuration, Result, Row, chosen
from papers._claims.statistics import CONFIRMED, INCONCLUSIVE, NOT_CONFIRMED
from papers._claims.verdict import Part, Verdict
from papers.allocation import _fixed_p, dynamic_p
from papers.allocation._fixed_p import (
    EXPONENTS,
    MATCHED_RATES,
    by,
    by_p,
    final_ratio,
    mean_layer_ratio,
    short,
    update_ratio,
)

RULE = (
    "raw or matched, an effect is there where its trend is confirmed at one learning rate or more; not there where it "
    "is so at none, and not confirmed at more than half of them; else open. Dynamic p raises accuracy by the rule of "
    "claim 8. Of an effect that is there raw: p's own if there when matched, the learning rate in disguise if not, "
    "else open. Confirmed where all of these are p's own; not confirmed where all are in disguise; else, and where "
    f"none is there raw, inconclusive. {statistics.TREND_RULE}"
)
RULES = {
    "step sizes alone": "confirmed where every effect that is in disguise, or open, has a confirmed trend over "
    "learning rates with p = 0 too; not confirmed where none has; else inconclusive",
    "prediction 1": "confirmed where, matched, the mean log of weight over bias-like update norm differs clearly "
    "between p=-0.4 and p=0.3 at every learning rate; not confirmed where it does at none; else inconclusive",
}
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


def trends(rows: Sequence[Row], given: Options, effect: str, scale: str) -> dict[float, statistics.Trend]:
    """Of an effect over p, by learning rate."""
    _, value = TRENDS[effect]
    return {lr: statistics.trend(by_p(fixed(rows, scale), value, lr=lr)) for lr in rates(given, scale)}


def is_there(rows: Sequence[Row], given: Options, effect: str, scale: str) -> str:
    """Confirmed where it is, not confirmed where it is not, inconclusive where that is open, by RULE."""
    if effect == DYNAMIC:
        return dynamic_p.verdict_on_gains(dynamic(rows, scale))
    direction, _ = TRENDS[effect]
    return some_of([found.verdict(direction) for found in trends(rows, given, effect, scale).values()])


def some_of(verdicts: Sequence[str]) -> str:
    """Confirmed where one is, else not confirmed where most are not."""
    if CONFIRMED in verdicts:
        return CONFIRMED
    return NOT_CONFIRMED if verdicts.count(NOT_CONFIRMED) > len(verdicts) / 2 else INCONCLUSIVE


def by_learning_rate(rows: Sequence[Row], effect: str) -> np.ndarray:
    """What step sizes do alone to an effect's quantity: with p = 0, (SWEPT_RATES, seeds)."""
    _, value = TRENDS[effect]
    swept = [row for row in fixed(rows, "raw") if row["configuration"]["lr"] in SWEPT_RATES]
    return by("lr", swept, value, p=0.0)


def kind(raw: str, matched: str) -> str:
    """What an effect is, by RULE."""
    if raw == CONFIRMED:
        return {CONFIRMED: OWN, NOT_CONFIRMED: DISGUISE, INCONCLUSIVE: OPEN}[matched]
    found = "not there" if raw == NOT_CONFIRMED else "not clearly there"
    return f"{found}, but there when matched" if matched == CONFIRMED else found


def judge(rows: Sequence[Row], given: Options) -> Verdict:
    """By RULE, and by RULES for the rest."""
    there = {
        effect: (is_there(rows, given, effect, "raw"), is_there(rows, given, effect, "adam"))
        for effect in (*TRENDS, DYNAMIC)
    }
    kinds = {effect: kind(*found) for effect, found in there.items()}
    of_raw = frozenset(kinds[effect] for effect, (raw, _) in there.items() if raw == CONFIRMED)
    return Verdict(
        number=9,
        claim="The effects of p remain once the update scale is matched",
        paper="does not ask; prediction 1 says they should",
        rule=f"{RULE} {' '.join(f'{name}: {rule}.' for name, rule in RULES.items())}",
        measured="; ".join(f"{effect}: {found}" for effect, found in kinds.items()),
        verdict={frozenset([OWN]): CONFIRMED, frozenset([DISGUISE]): NOT_CONFIRMED}.get(of_raw, INCONCLUSIVE),
        seeds=given.seeds,
        size=given.size,
        reason=_layers_apart(rows, given),
        parts={
            "step sizes alone": _step_sizes(rows, [e for e, found in kinds.items() if found in (DISGUISE, OPEN)]),
            "prediction 1": _prediction_1(rows),
            **{f"{name} of claim 8, matched": part for name, part in dynamic_p.parts(dynamic(rows, "adam")).items()},
        },
        figures=_figures(rows, given),
    )


def _step_sizes(rows: Sequence[Row], effects: Sequence[str]) -> Part:
    swept = {
        effect: statistics.trend(by_learning_rate(rows, effect)).verdict(direction)
        for effect, (direction, _) in TRENDS.items()
    }
    asked = [swept[effect] for effect in effects if effect in swept]
    if asked and set(asked) == {CONFIRMED}:
        verdict = CONFIRMED
    else:
        verdict = NOT_CONFIRMED if asked and CONFIRMED not in asked else INCONCLUSIVE
    told = "; ".join(f"{effect}: {found}" for effect, found in swept.items())
    return Part(verdict, f"p = 0, lr from {SWEPT_RATES[0]:g} to {SWEPT_RATES[-1]:g}: {told}")


def _prediction_1(rows: Sequence[Row]) -> Part:
    changes = {lr: statistics.trend(by_p(fixed(rows, "adam"), update_ratio, lr=lr)).change for lr in MATCHED_RATES}
    differ = [statistics.differs(change) for change in changes.values()]
    verdict = CONFIRMED if all(differ) else INCONCLUSIVE if any(differ) else NOT_CONFIRMED
    told = ", ".join(f"{change} at lr={lr:g}" for lr, change in changes.items())
    return Part(verdict, f"change of log of weight over bias-like update norm from p=-0.4 to 0.3, matched: {told}")


def _layers_apart(rows: Sequence[Row], given: Options) -> str:
    """Which layers go their own way, which a ratio of all of them hides."""
    told = []
    for scale, name in (("raw", "raw"), ("adam", "matched")):
        of_rates = [_fixed_p.trends_of_layers(fixed(rows, scale), lr=lr) for lr in rates(given, scale)]
        for direction, word in ((-1, "falls"), (+1, "rises")):
            layers = [layer for layer in of_rates[0] if _mostly(of_rates, layer, direction)]
            told.append(f"{name}, it {word} in {', '.join(map(short, layers)) or 'none'}")
    return f"Layers' own G_w/G_b, with p, at more than half of the learning rates: {'; '.join(told)}."


def _mostly(of_rates: Sequence[dict[str, statistics.Trend]], layer: str, direction: int) -> bool:
    return sum(found[layer].verdict(direction) == CONFIRMED for found in of_rates) > len(of_rates) / 2


def _figures(rows: Sequence[Row], given: Options) -> dict[str, object]:
    found: dict[str, object] = {}
    for effect, (direction, value) in TRENDS.items():
        for scale in ("raw", "adam"):
            for lr in rates(given, scale):
                found[f"{effect}, {scale}, lr={lr:g}"] = _summary(by_p(fixed(rows, scale), value, lr=lr), direction)
        found[f"{effect}, p=0 over lr"] = _summary(by_learning_rate(rows, effect), direction)
    for scale in ("raw", "adam"):
        gains = {name: str(dynamic_p.gain(dynamic(rows, scale), name)) for name in dynamic_p.STRATEGIES[1:]}
        found[f"{DYNAMIC}, {scale}"] = gains
    return found


def _summary(values: np.ndarray, direction: int) -> dict[str, object]:
    trend = statistics.trend(values)
    return {
        "from first to last": [str(statistics.mean_of(values[i])) for i in (0, -1)],
        "correlation": trend.correlation,
        "verdict": trend.verdict(direction),
    }


def draw(rows: Sequence[Row], given: Options) -> None:
    """Each effect over p, raw and matched, and over learning rates with p = 0; what moving p gains; updates."""
    titles = {
        "G_w/G_b falls": "G_w / G_b, last epoch",
        "G_w/G_b falls by layer (geometric mean)": "mean over layers of G_w / G_b",
        "median test loss falls": "median test loss",
        "99th percentile rises": "99th percentile of test losses",
    }
    names = {"raw": "Eq. 18, raw", "adam": "update scale matched"}
    style = {"marker": "o", "markersize": 3}
    with figures.panels(3, len(titles) + 1, width=3.3, height=2.7) as (figure, grid):
        for row, scale in enumerate(names):
            for axes, (effect, title) in zip(grid[row], titles.items(), strict=False):
                for i, lr in enumerate(rates(given, scale)):
                    values = by_p(fixed(rows, scale), TRENDS[effect][1], lr=lr).T
                    figures.band(axes, EXPONENTS, values, color=f"C{i}", label=f"lr = {lr:g}", **style)
                axes.set(title=title, xlabel="p")
                figures.logarithmic(axes)
            grid[row, 0].legend()
            grid[row, 0].set_ylabel(names[scale])
            _draw_gains(grid[row, -1], dynamic(rows, scale))
        for axes, effect in zip(grid[2], titles, strict=False):
            figures.band(axes, SWEPT_RATES, by_learning_rate(rows, effect).T, color="0.3", **style)
            axes.set(xlabel="learning rate", xscale="log")
            figures.logarithmic(axes)
        grid[2, 0].set_ylabel("p = 0")
        for i, lr in enumerate(MATCHED_RATES):
            values = by_p(fixed(rows, "adam"), update_ratio, lr=lr).T
            figures.band(grid[2, -1], EXPONENTS, values, color=f"C{i}", label=f"lr = {lr:g}", **style)
        grid[2, -1].set(title="log of weight / bias-like update, matched", xlabel="p")
        grid[2, -1].title.set_fontsize(8)
        figures.save(figure, given.directory / "figure.png")


def _draw_gains(axes: figures.Axes, rows: Sequence[Row]) -> None:
    strategies = dynamic_p.STRATEGIES[1:]
    gains = [dynamic_p.gain(rows, strategy) for strategy in strategies]
    axes.barh(range(len(gains)), [100 * g.mean for g in gains], xerr=[100 * g.spread for g in gains], color="C0")
    axes.set_yticks(range(len(gains)), strategies, fontsize=6)
    axes.set_title("best accuracy over p = 0.5, points", fontsize=8)


CLAIM = Claim(
    __name__, __doc__, configurations, run, judge, draw, _fixed_p.ROWS, (*_fixed_p.OPTIONS, *dynamic_p.OPTIONS)
)
