"""Claim 9 (ours): which of the paper's effects are p's own, and which are the learning rate in disguise?

    python recipes/papers/allocation/own_effect.py

A larger p makes every raw update larger, by orders of magnitude where second moments are small, so that a sweep
over p is also one over step sizes. Claims 4, 5 and 8 again with update_scale=adam, where one factor for all
parameters gives every update the size that Adam's has, beside the same sweeps with the raw Eq. 18.
"""

from collections.abc import Callable, Sequence

import numpy as np

import _fixed_p
import dynamic_p
from _claims import figures, statistics
from _claims.claim import Claim
from _claims.options import Options
from _claims.rows import Configuration, Result, Row
from _claims.verdict import Verdict
from _fixed_p import EXPONENTS, MATCHED_RATES, by_p, final_ratio
from sample_losses import losses

NAME = "own_effect"
RULE = (
    "an effect is there, raw or matched, where its trend is confirmed at both learning rates (raw: 0.01 and 0.1, "
    "matched: 0.001 and 0.01), or, for dynamic p, where both falling p raise the best accuracy by more than "
    f"{statistics.STANDARD_ERRORS:g} standard errors. p's own: there when matched. In disguise: there when raw, and "
    "not when matched. Confirmed (the paper's effects are p's own) where every effect that is there raw is there "
    f"matched; not confirmed where none of them is; else inconclusive. {statistics.TREND_RULE}"
)
Quantity = Callable[[Sequence[Row], float], np.ndarray]
TRENDS: dict[str, tuple[int, Quantity]] = {
    "G_w/G_b falls": (-1, lambda rows, lr: by_p(rows, final_ratio, lr=lr)),
    "median test loss falls": (-1, lambda rows, lr: losses(rows, lr, "p50")),
    "95th percentile rises": (+1, lambda rows, lr: losses(rows, lr, "p95")),
    "99th percentile rises": (+1, lambda rows, lr: losses(rows, lr, "p99")),
}
"""By effect: the direction, and what goes that way with p, (p, seeds) at a learning rate."""
DYNAMIC = "dynamic p raises accuracy"


def configurations(given: Options) -> list[Configuration]:
    """The sweeps of claims 4 and 8, raw and matched."""
    return [
        *_fixed_p.configurations(given),
        *_fixed_p.configurations(given, rates=MATCHED_RATES, update_scale="adam"),
        *dynamic_p.configurations(given),
        *dynamic_p.configurations(given, update_scale="adam"),
    ]


def run(configuration: Configuration, given: Options) -> Result:
    """One run of either."""
    return (dynamic_p if "strategy" in configuration else _fixed_p).run(configuration, given)


def _fixed(rows: Sequence[Row], scale: str) -> list[Row]:
    return [
        row for row in rows if "strategy" not in row["configuration"] and row["configuration"]["update_scale"] == scale
    ]


def _dynamic(rows: Sequence[Row], scale: str) -> list[Row]:
    return [row for row in rows if "strategy" in row["configuration"] and row["configuration"]["update_scale"] == scale]


RATES = {"raw": _fixed_p.PAPERS_RATES, "adam": MATCHED_RATES}


def is_there(rows: Sequence[Row], effect: str, scale: str) -> bool:
    """By RULE."""
    if effect == DYNAMIC:
        return dynamic_p.verdict_on_gains(_dynamic(rows, scale)) == statistics.CONFIRMED
    direction, quantity = TRENDS[effect]
    trends = [statistics.trend(quantity(_fixed(rows, scale), lr)) for lr in RATES[scale]]
    return all(trend.verdict(direction) == statistics.CONFIRMED for trend in trends)


def judge(rows: Sequence[Row], given: Options) -> Verdict:
    """By RULE."""
    effects = (*TRENDS, DYNAMIC)
    there = {effect: (is_there(rows, effect, "raw"), is_there(rows, effect, "adam")) for effect in effects}
    kinds = {
        (True, True): "p's own",
        (False, True): "p's own, hidden by the step size when raw",
        (True, False): "the learning rate in disguise",
        (False, False): "not there",
    }
    raw = [matched for was_raw, matched in there.values() if was_raw]
    if raw and all(raw):
        outcome = statistics.CONFIRMED
    else:
        outcome = statistics.NOT_CONFIRMED if not any(raw) else statistics.INCONCLUSIVE
    return Verdict(
        number=9,
        claim="The effects of p remain once the update scale is matched",
        paper="does not ask; prediction 1 says they should",
        rule=RULE,
        measured="; ".join(f"{effect}: {kinds[found]}" for effect, found in there.items()),
        verdict=outcome,
        seeds=given.seeds,
        size=given.size,
        figures={
            f"{effect}, {scale}, lr={lr:g}": {
                "from p=-0.4 to 0.3": [str(statistics.mean_of(values[i])) for i in (0, -1)],
                "correlation": statistics.trend(values).correlation,
                "verdict": statistics.trend(values).verdict(direction),
            }
            for effect, (direction, quantity) in TRENDS.items()
            for scale, rates in RATES.items()
            for lr in rates
            for values in [quantity(_fixed(rows, scale), lr)]
        }
        | {
            f"{DYNAMIC}, {scale}": {
                strategy: str(dynamic_p.gain(_dynamic(rows, scale), strategy)) for strategy in dynamic_p.STRATEGIES[1:]
            }
            for scale in RATES
        },
    )


def draw(rows: Sequence[Row], given: Options) -> None:
    """Each effect over p: raw in the upper row, matched in the lower."""
    titles = {"G_w/G_b falls": "G_w / G_b, last epoch", "median test loss falls": "median test loss"}
    titles |= {"95th percentile rises": "95th percentile of test losses"}
    with figures.panels(2, len(titles) + 1, width=3.4, height=2.8) as (figure, grid):
        for row, scale in enumerate(RATES):
            for axes, (effect, title) in zip(grid[row], titles.items(), strict=False):
                for i, lr in enumerate(RATES[scale]):
                    values = TRENDS[effect][1](_fixed(rows, scale), lr).T
                    figures.band(axes, EXPONENTS, values, color=f"C{i}", marker="o", markersize=3, label=f"lr = {lr:g}")
                axes.set(title=title, xlabel="p", yscale="log")
                axes.legend()
            grid[row, 0].set_ylabel({"raw": "Eq. 18, raw", "adam": "update scale matched"}[scale])
            gains = [dynamic_p.gain(_dynamic(rows, scale), strategy) for strategy in dynamic_p.STRATEGIES[1:]]
            places = range(len(gains))
            grid[row, -1].barh(places, [100 * g.mean for g in gains], xerr=[100 * g.spread for g in gains], color="C0")
            grid[row, -1].set_yticks(places, dynamic_p.STRATEGIES[1:], fontsize=7)
            grid[row, -1].set(title="best accuracy over p = 0.5, points")
        figures.save(figure, given.directory / "figure.png")


CLAIM = Claim(
    NAME, __doc__, configurations, run, judge, draw, _fixed_p.ROWS, (*_fixed_p.FULL_NEEDS, *dynamic_p.FULL_NEEDS)
)

if __name__ == "__main__":
    CLAIM.main()
