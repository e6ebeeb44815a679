"""Claim 5: a larger p lowers the median of the test losses and raises their tail (IAD 4.1.2, Fig. 4, Table 2).

    python recipes/claim.py sample_losses

From the rows of claim 4, which are run first where they are missing. Writes `table_2.md`, our figures beside the
paper's.

The paper's: as claim 4, with Table 2. Ours: as claim 4.
"""

import math
from collections.abc import Sequence

import numpy as np

from hf_pdyn.common.atomic import replacing
from hf_pdyn.sweep import statistics
from hf_pdyn.sweep.outcome import ALL_RULE, Outcome, all_of
from papers._claims import figures
from papers._claims.claim import Claim
from papers._claims.options import Options
from papers._claims.rows import Row
from papers._claims.training import TABLE_2
from papers._claims.verdict import Verdict
from papers.allocation import _fixed_p
from papers.allocation._fixed_p import BOUND, EXPONENTS, FACTOR, PAPERS_RATES, by_p

FALL, RISE = ("p50",), ("p95", "p99")
RULE = f"""At both of the paper's learning rates, the logarithm of the test losses' median falls with p, and those of
their 95th and 99th percentile rise. Bound: a factor of {FACTOR:g}. {ALL_RULE} {statistics.TREND_RULE}
{statistics.EFFECT_RULE}"""

# Table 2 as printed, in percent for accuracy and L > 5.
PAPER: dict[tuple[float, float], tuple[float, ...]] = {
    (0.01, -0.4): (77.58, 0.987, 1.417, 0.22, 4.246, 5.32, 1.78),
    (0.01, -0.3): (78.53, 0.921, 1.424, 0.157, 4.297, 5.484, 2.14),
    (0.01, -0.2): (78.41, 0.889, 1.462, 0.1, 4.367, 5.68, 2.56),
    (0.01, -0.1): (78.15, 0.876, 1.531, 0.068, 4.52, 6.148, 3.24),
    (0.01, 0.0): (78.66, 0.859, 1.578, 0.041, 4.586, 6.523, 3.68),
    (0.01, 0.1): (77.87, 0.889, 1.723, 0.021, 4.922, 7.367, 4.78),
    (0.01, 0.2): (77.79, 0.947, 1.956, 0.008, 5.5, 8.462, 6.32),
    (0.01, 0.3): (77.09, 1.11, 2.368, 0.003, 6.563, 10.688, 8.48),
    (0.1, -0.4): (78.16, 0.872, 1.487, 0.075, 4.43, 5.825, 2.81),
    (0.1, -0.3): (78.24, 0.862, 1.512, 0.059, 4.391, 6.063, 2.85),
    (0.1, -0.2): (78.46, 0.841, 1.529, 0.046, 4.422, 6.356, 3.24),
    (0.1, -0.1): (78.34, 0.86, 1.646, 0.027, 4.676, 6.949, 4.06),
    (0.1, 0.0): (78.69, 0.863, 1.76, 0.014, 4.86, 7.613, 4.66),
    (0.1, 0.1): (77.28, 0.973, 2.006, 0.007, 5.5, 8.836, 6.21),
    (0.1, 0.2): (76.23, 1.195, 2.599, 0.002, 7.165, 11.774, 9.34),
    (0.1, 0.3): (75.28, 1.401, 3.091, 0.001, 8.509, 13.789, 11.07),
}


def losses(rows: Sequence[Row], lr: float, name: str, split: str = "test", **where: object) -> np.ndarray:
    """A column of Table 2, (p, seeds)."""
    return by_p(rows, lambda result: result["table_2"][split][name], lr=lr, **where)


def outcomes(rows: Sequence[Row], lr: float) -> dict[str, Outcome]:
    """Of each quantile."""
    found = {name: _fixed_p.log_trend(losses(rows, lr, name)) for name in (*FALL, *RISE)}
    return {
        name: statistics.effect(trend, BOUND, direction=-1 if name in FALL else +1) for name, trend in found.items()
    }


def told(by_lr: dict[float, dict[str, Outcome]], rows: Sequence[Row]) -> str:
    """Both ends of every quantile, with its outcome."""
    parts = []
    for lr, found in by_lr.items():
        ends = {name: losses(rows, lr, name).mean(1) for name in found}
        quantiles = [f"{name} {ends[name][0]:.3g} to {ends[name][-1]:.3g} ({found[name]})" for name in found]
        parts.append(f"at lr={lr:g} {', '.join(quantiles)}")
    return "; ".join(parts)


def judge(rows: Sequence[Row], given: Options) -> Verdict:
    """By RULE."""
    _write_table(rows, given)
    by_lr = {lr: outcomes(rows, lr) for lr in _fixed_p.learning_rates(given)}
    return Verdict(
        number=5,
        claim="Sample losses: medians fall and tails rise with p",
        paper="from p=-0.4 to 0.3, p50 0.22 to 0.003 and p95 4.2 to 6.6 at lr=0.01; 0.075 to 0.001 and 4.4 to 8.5 "
        "at lr=0.1",
        measured=told(by_lr, rows),
        verdict=all_of(outcome for lr in PAPERS_RATES for outcome in by_lr[lr].values()),
        reason=_tails(rows),
        figures={
            f"lr={lr:g}": {
                f"{split} {name}": statistics.means_by_p(EXPONENTS, losses(rows, lr, name, split))
                for split in ("test", "train")
                for name in TABLE_2
            }
            for lr in by_lr
        },
    )


def _tails(rows: Sequence[Row]) -> str:
    """Why a percentile may not move: it has to lie among the samples that are got wrong."""
    errors = {lr: 1 - losses(rows, lr, "accuracy").mean(1) for lr in PAPERS_RATES}
    told = ", ".join(f"{found[0]:.0%} to {found[-1]:.0%} at lr={lr:g}" for lr, found in errors.items())
    return (
        "A network that has learned little is confident of nothing, so that its losses have no tail to raise: test "
        f"error from p=-0.4 to 0.3 is {told}, the paper's 21 to 25 % throughout."
    )


def _write_table(rows: Sequence[Row], given: Options) -> None:
    """Ours as means over seeds, the paper's in brackets."""
    lines = ["| lr | p | Acc. | Mean | Std. | p50 | p95 | p99 | L > 5 |", "|---|---|---|---|---|---|---|---|---|"]
    for lr in _fixed_p.learning_rates(given):
        columns = {name: losses(rows, lr, name).mean(1) for name in TABLE_2}
        for i, p in enumerate(EXPONENTS):
            ours = [columns[name][i] * (100 if name in ("accuracy", "share_above_5") else 1) for name in TABLE_2]
            papers = PAPER.get((lr, p), (math.nan,) * len(ours))
            cells = [
                f"{own:.3g}" + ("" if math.isnan(its) else f" ({its:g})") for own, its in zip(ours, papers, strict=True)
            ]
            lines.append(f"| {lr:g} | {p:g} | {' | '.join(cells)} |")
    with replacing(given.directory / "table_2.md") as partial:
        partial.write_text("\n".join(lines) + "\n", "utf-8")


def draw(rows: Sequence[Row], given: Options) -> None:
    """Fig. 4: quantiles of test and clean train losses over p; below, the shares of test losses above 5."""
    rates = _fixed_p.learning_rates(given)
    with figures.panels(3, len(rates), sharex=True, sharey="row") as (figure, grid):
        for column, lr in enumerate(rates):
            *quantiles, tail = grid[:, column]
            for axes, split in zip(quantiles, ("test", "train"), strict=True):
                for name, colour in zip((*FALL, *RISE), ("C0", "C1", "C3"), strict=True):
                    values = losses(rows, lr, name, split).T
                    figures.band(axes, EXPONENTS, values, color=colour, marker="o", markersize=3, label=name)
                    paper = [PAPER[lr, p][TABLE_2.index(name)] for p in EXPONENTS if (lr, p) in PAPER]
                    if paper and split == "test":
                        axes.plot(EXPONENTS, paper, color=colour, linestyle=":")
                axes.set_yscale("log")
            share = 100 * losses(rows, lr, "share_above_5").T
            figures.band(tail, EXPONENTS, share, color="C3", marker="o", markersize=3)
            tail.set_xlabel("p")
            grid[0, column].set_title(f"lr = {lr:g}")
            if lr not in PAPERS_RATES:
                figures.control(grid[:, column])
        for axes, label in zip(grid[:, 0], ("test loss", "train loss", "test losses above 5, %"), strict=True):
            axes.set_ylabel(label)
        grid[0, 0].plot([], [], color="0.5", linestyle=":", label="the paper's, of another network")
        figures.legend(figure)
        figures.save(figure, given.directory / "figure.png")


CLAIM = Claim(
    __name__, __doc__, RULE, _fixed_p.configurations, _fixed_p.run, judge, draw, _fixed_p.folder_of, _fixed_p.OPTIONS
)
