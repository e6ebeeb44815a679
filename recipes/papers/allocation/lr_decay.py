"""Claim 7: as the learning rate decays, the bias gradient falls faster and G_w/G_b rises (IAD 4.1.4).

    python recipes/claim.py lr_decay

The runs of claim 4 have cosine decay; the same ones with a constant learning rate show how much of the rise is the
decay's.

The paper's: as claim 4; cosine annealing. Ours: as claim 4; the constant learning rate, and half of training as
"late".
"""

import functools
import math
from collections.abc import Sequence

import numpy as np

from hf_pdyn.sweep import statistics
from hf_pdyn.sweep.outcome import ALL_RULE, all_of
from papers._claims import figures
from papers._claims.claim import Claim
from papers._claims.options import Options
from papers._claims.rows import Configuration, Result, Row, chosen
from papers._claims.verdict import Verdict
from papers.allocation import _fixed_p
from papers.allocation._fixed_p import PAPERS_RATES, by_p, final_ratio

EXPONENTS = (-0.4, 0.0, 0.3)
SCHEDULES = ("cosine", "constant")
FACTOR = 1.05
BOUND = math.log(FACTOR)
RULE = f"""The rise is the logarithm of the last epoch's G_w/G_b over that at half of training, mean over p. At both
of the paper's learning rates it is above zero under cosine decay, and above that under a constant learning rate.
Bound: a factor of {FACTOR:g}. {ALL_RULE} {statistics.EFFECT_RULE}"""


def configurations(given: Options) -> list[Configuration]:
    """Some p, at every learning rate, under both schedules."""
    return [
        row
        for schedule in SCHEDULES
        for row in _fixed_p.configurations(given, exponents=EXPONENTS, lr_scheduler=schedule)
    ]


def rise(result: Result) -> float | None:
    """Log of G_w/G_b at the end over that at half of training; None where either is missing."""
    return None if final_ratio(result) is None else change(result, "G_w_over_G_b")


def change(result: Result, name: str) -> float | None:
    """Log of a quantity at the end over that at half of training."""
    curve = result["curves"][name]
    middle, end = curve[len(curve) // 2 - 1], curve[-1]
    return float(np.log(end / middle)) if middle and end else None


def rises(rows: Sequence[Row], lr: float, schedule: str) -> np.ndarray:
    """(p, seeds)."""
    return by_p(rows, rise, lr=lr, lr_scheduler=schedule)


def judge(rows: Sequence[Row], given: Options) -> Verdict:
    """By RULE."""
    rates = _fixed_p.learning_rates(given)
    cosine = {lr: rises(rows, lr, "cosine") for lr in rates}
    more = {lr: cosine[lr] - rises(rows, lr, "constant") for lr in rates}
    outcomes = {
        lr: [statistics.effect(statistics.mean_of(found[lr].mean(0)), BOUND) for found in (cosine, more)]
        for lr in rates
    }
    factors = ", ".join(
        f"{np.exp(cosine[lr].mean()):.2f} x at lr={lr:g} ({outcomes[lr][0]}; constant "
        f"{np.exp(rises(rows, lr, 'constant').mean()):.2f} x, more than that: {outcomes[lr][1]})"
        for lr in rates
    )
    return Verdict(
        number=7,
        claim="Learning-rate decay raises G_w/G_b late in training",
        paper="under cosine decay both gradients fall, the bias's faster, so that G_w/G_b often rises late",
        measured=f"from half of training to its end G_w/G_b changes by {factors}, mean over p",
        verdict=all_of(outcome for lr in PAPERS_RATES for outcome in outcomes[lr]),
        reason=_both_gradients(rows),
        figures={
            f"lr={lr:g}": {
                f"p={p:g}": {
                    "rise under cosine": str(statistics.mean_of(cosine[lr][i])),
                    "more than constant": str(statistics.mean_of(more[lr][i])),
                }
                for i, p in enumerate(EXPONENTS)
            }
            for lr in rates
        },
    )


def _both_gradients(rows: Sequence[Row]) -> str:
    """How each gradient changes in the second half, which the paper's explanation is about."""
    told = []
    for lr in PAPERS_RATES:
        weight, bias = (
            np.exp(by_p(rows, functools.partial(change, name=name), lr=lr, lr_scheduler="cosine").mean())
            for name in ("D_w", "D_b")
        )
        told.append(f"{weight:.2f} x and {bias:.2f} x at lr={lr:g}")
    return f"Under cosine decay D_w and D_b change in the second half by {', '.join(told)}, mean over p."


def draw(rows: Sequence[Row], given: Options) -> None:
    """G_w/G_b over epochs under both schedules; below, both gradient norms under cosine decay."""
    rates = _fixed_p.learning_rates(given)
    with figures.panels(2, len(rates), height=2.5, sharex=True, sharey="row") as (figure, grid):
        for (ratios, norms), lr in zip(grid.T, rates, strict=True):
            for p, colour in zip(EXPONENTS, figures.colours(len(EXPONENTS)), strict=True):
                _draw_ratios(ratios, rows, p, lr, colour)
                for name, line in (("D_w", "-"), ("D_b", ":")):
                    values = _curves(rows, name, p, lr, "cosine").mean(0)
                    norms.semilogy(range(1, len(values) + 1), values, color=colour, linestyle=line)
            ratios.set_title(f"lr = {lr:g}")
            norms.set_xlabel("epoch")
            if lr not in PAPERS_RATES:
                figures.control([ratios, norms])
        grid[0, 0].set(ylabel="G_w / G_b", ylim=(0, None))
        grid[1, 0].set_ylabel("gradient norm, cosine")
        grid[0, 0].plot([], [], color="0.5", linestyle="--", label="constant learning rate (control)")
        grid[1, 0].plot([], [], color="0.5", label="D_w")
        grid[1, 0].plot([], [], color="0.5", linestyle=":", label="D_b")
        figures.legend(figure, columns=3)
        figures.save(figure, given.directory / "figure.png")


def _draw_ratios(axes: figures.Axes, rows: Sequence[Row], p: float, lr: float, colour: object) -> None:
    cosine, constant = (_curves(rows, "G_w_over_G_b", p, lr, schedule) for schedule in SCHEDULES)
    epochs = np.arange(1, cosine.shape[1] + 1)
    figures.band(axes, epochs, cosine, color=colour, label=f"p = {p:g}")
    axes.plot(epochs, constant.mean(0), color=colour, linestyle="--")


def _curves(rows: Sequence[Row], name: str, p: float, lr: float, schedule: str) -> np.ndarray:
    """(seeds, epochs)."""
    found = chosen(rows, p=p, lr=lr, lr_scheduler=schedule)
    return np.array([row["result"]["curves"][name] for row in found], float)


CLAIM = Claim(__name__, __doc__, RULE, configurations, _fixed_p.run, judge, draw, _fixed_p.folder_of, _fixed_p.OPTIONS)
