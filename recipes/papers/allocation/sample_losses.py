"""Claim 5: a larger p lowers the median of the test losses and raises their tail (IAD 4.1.2, Fig. 4, Table 2).

    python recipes/claim.py sample_losses

From the rows of claim 4, which are run first where they are missing. Writes `table_2.md`, our figures beside the
paper's. Beside the claim it is asked whether p and the learning rate can be told apart by these losses at all: in the
paper's own Table 2, which needs no run, and in ours.

The paper's: as claim 4, with Table 2. Ours: as claim 4, and the questions about one curve.
"""

import math
from collections.abc import Sequence

import numpy as np

from hf_pdyn.common.atomic import replacing
from hf_pdyn.sweep import statistics
from hf_pdyn.sweep.outcome import ALL_RULE, CONFIRMED, OPPOSITE, Outcome, all_of
from papers._claims import figures
from papers._claims.options import Options
from papers._claims.rows import Row
from papers._claims.training import SPLITS, TABLE_2
from papers._claims.verdict import Part, Verdict
from papers.allocation import _fixed_p, gradient_ratio
from papers.allocation._curves import PAPER, along, paper_column, r_squared, shift_of_p
from papers.allocation._fixed_p import BOUND, BOUNDS, LOSSES, Effect, by_p, log, table, usual

CLAIMED = ("median test loss falls", "95th percentile rises", "99th percentile rises")
TAILS = ("p95", "p99", "std", "share_above_5")
CURVE, ADDS = 0.99, 0.005
RULE = f"""At both learning rates, the logarithm of the test losses' median falls with p, and those of their 95th and
99th percentile rise. {BOUNDS} Parts, at both learning rates. standard deviation; share above 5: both rise. train mean:
the mean train loss falls. one curve (the paper's): over the 16 cells of its Table 2, without a run, log p95, log p99,
log std and log share above 5 are quadratic in log p50 with an R^2 of {CURVE:g} at least, to which log lr and p together
add less than {ADDS:g}; confirmed where all four are, else opposite. one curve (ours): the same of the means over seeds,
of which only those with p50 above 0 and a share above 5 above 0 count. equal medians: where the medians of the two
learning rates are equal, by interpolation over p in each seed, log p99 differs between them, either way. {ALL_RULE}
{statistics.TREND_RULE} {statistics.EFFECT_RULE}"""


def losses(rows: Sequence[Row], lr: float, name: str, split: str = "test") -> np.ndarray:
    """A column of Table 2, (p, seeds)."""
    return by_p(usual(rows, lr=lr), table(name, split))


def judge(rows: Sequence[Row], given: Options) -> Verdict:
    """By RULE."""
    _write_table(rows, given)
    rates = _fixed_p.rates(given, "raw")
    of_rates = {lr: usual(rows, lr=lr) for lr in rates}
    outcomes = {name: [effect.outcome(of_lr) for of_lr in of_rates.values()] for name, effect in LOSSES.items()}
    train = Effect(-1, log(table("mean", "train")))
    return Verdict(
        number=5,
        claim="Sample losses: medians fall and tails rise with p",
        paper="from p=-0.4 to 0.3, p50 0.22 to 0.003 and p95 4.2 to 6.6 at lr=0.01; 0.075 to 0.001 and 4.4 to 8.5 "
        "at lr=0.1",
        measured="; ".join(
            f"at lr={lr:g} "
            + ", ".join(_ends(rows, lr, name, outcomes[effect][i]) for name, effect in zip(TOLD, CLAIMED, strict=True))
            for i, lr in enumerate(rates)
        ),
        verdict=all_of(outcome for name in CLAIMED for outcome in outcomes[name]),
        reason=f"{_fixed_p.data_of(rows)}; {_fixed_p.eps_shares(rows)}.",
        parts={
            "standard deviation rises": _part(rows, rates, "std", outcomes["standard deviation rises"]),
            "share above 5 rises": _part(rows, rates, "share_above_5", outcomes["share above 5 rises"]),
            "mean train loss falls": _part(
                rows, rates, "mean", [train.outcome(one) for one in of_rates.values()], "train"
            ),
            "the paper's Table 2 is one curve (ours, without a run)": _one_curve(*_papers()),
            "our Table 2 is one curve (ours)": _one_curve(*_ours(rows, rates, given["exponents"])),
            "tails differ at equal medians (ours)": _equal_medians(rows, rates),
        },
        figures={
            f"lr={lr:g}": {
                f"{split} {name}": statistics.means_by_p(given["exponents"], losses(rows, lr, name, split))
                for split in SPLITS
                for name in TABLE_2
            }
            for lr in rates
        },
    )


TOLD = ("p50", "p95", "p99")


def _ends(rows: Sequence[Row], lr: float, name: str, outcome: Outcome, split: str = "test") -> str:
    first, *_, last = losses(rows, lr, name, split).mean(1)
    return f"{name} {first:.3g} to {last:.3g} ({outcome})"


def _part(
    rows: Sequence[Row], rates: Sequence[float], name: str, outcomes: Sequence[Outcome], split: str = "test"
) -> Part:
    told = [f"at lr={lr:g} {_ends(rows, lr, name, one, split)}" for lr, one in zip(rates, outcomes, strict=True)]
    return Part(all_of(outcomes), "; ".join(told))


Cells = tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, str]
"""Columns of Table 2 over cells, log lr and p of the cells, and the exchange rate in words."""


def _papers() -> Cells:
    columns = {name: paper_column(name) for name in ("p50", *TAILS)}
    rates, exponents = np.array(list(PAPER)).T
    shift = shift_of_p({lr: columns["p50"][rates == lr] for lr in set(rates)}, exponents[rates == rates[0]])
    return columns, np.log(rates), exponents, f"ten times the learning rate is a p larger by {shift:.2f}"


def _ours(rows: Sequence[Row], rates: Sequence[float], exponents: Sequence[float]) -> Cells:
    means = {name: np.concatenate([losses(rows, lr, name).mean(1) for lr in rates]) for name in ("p50", *TAILS)}
    log_lr, p = np.repeat(np.log(rates), len(exponents)), np.tile(exponents, len(rates))
    usable = (means["p50"] > 0) & (means["share_above_5"] > 0)
    columns = {name: np.log(values[usable]) for name, values in means.items()}
    shifts = []
    if len(rates) == 2:
        per_seed = [np.log(losses(rows, lr, "p50")) for lr in rates]
        shifts = [
            shift_of_p(dict(zip(rates, pair, strict=True)), np.array(exponents))
            for pair in zip(*(values.T for values in per_seed), strict=True)
        ]
    told = (
        f"{rates[-1] / rates[0]:g} times the learning rate is a p larger by {statistics.mean_of(shifts)}"
        if shifts
        else ""
    )
    return columns, log_lr[usable], p[usable], told


def _one_curve(columns: dict[str, np.ndarray], log_lr: np.ndarray, p: np.ndarray, exchange: str) -> Part:
    if len(p) < 6 or not all(np.isfinite(values).all() for values in columns.values()):
        return Part(OPPOSITE, f"{len(p)} cells are too few for a curve")
    curve = along(columns["p50"])
    found = {name: (r_squared(columns[name], *curve), r_squared(columns[name], *curve, log_lr, p)) for name in TAILS}
    holds = all(one >= CURVE and both - one < ADDS for one, both in found.values())
    told = ", ".join(f"{name} {one:.4f} (+{both - one:.4f})" for name, (one, both) in found.items())
    alone = ", ".join(f"{r_squared(columns[name], p, p**2):.2f}" for name in TAILS)
    return Part(
        CONFIRMED if holds else OPPOSITE,
        f"R^2 of {told} (with lr and p); by p alone {alone}; {exchange}; {len(p)} cells",
    )


def _equal_medians(rows: Sequence[Row], rates: Sequence[float]) -> Part:
    """Differences of log p99 at the larger learning rate from those at the smaller one, by seed."""
    if len(rates) != 2:
        return Part(Outcome.INCONCLUSIVE, "it takes two learning rates")
    median, tail = ([np.log(losses(rows, lr, name)).T for lr in rates] for name in ("p50", "p99"))
    seeds = [
        _difference(small, tail_of_small, large, tail_of_large)
        for small, large, tail_of_small, tail_of_large in zip(*median, *tail, strict=True)
    ]
    found = statistics.mean_of(seeds)
    return Part(
        statistics.difference(found, BOUND),
        f"log p99 at lr={rates[1]:g} less that at lr={rates[0]:g}, where medians are equal: {found}",
    )


def _difference(small: np.ndarray, tail_of_small: np.ndarray, large: np.ndarray, tail_of_large: np.ndarray) -> float:
    order = np.argsort(small)
    inside = (large >= small.min()) & (large <= small.max())
    if not inside.any():
        return math.nan
    return float((tail_of_large - np.interp(large, small[order], tail_of_small[order]))[inside].mean())


def _write_table(rows: Sequence[Row], given: Options) -> None:
    """Ours as means over seeds; the paper's is of another network and other learning rates."""
    lines = ["| lr | p | Acc. | Mean | Std. | p50 | p95 | p99 | L > 5 |", "|---|---|---|---|---|---|---|---|---|"]
    percent = ("accuracy", "share_above_5")

    def line(lr: float, p: float, values: Sequence[float]) -> str:
        return f"| {lr:g} | {p:g} | {' | '.join(f'{value:.3g}' for value in values)} |"

    for lr in _fixed_p.rates(given, "raw"):
        columns = {name: losses(rows, lr, name).mean(1) * (100 if name in percent else 1) for name in TABLE_2}
        lines += [line(lr, p, [columns[name][i] for name in TABLE_2]) for i, p in enumerate(given["exponents"])]
    lines += ["", "The paper's Table 2:", "", *lines[:2]]
    lines += [line(lr, p, values) for (lr, p), values in PAPER.items()]
    with replacing(given.directory / "table_2.md") as partial:
        partial.write_text("\n".join(lines) + "\n", "utf-8")


def draw(rows: Sequence[Row], given: Options) -> None:
    """Fig. 4, quantiles over p; and the same tails over the median, in which p and learning rate do not show."""
    rates, exponents = _fixed_p.rates(given, "raw"), given["exponents"]
    with figures.panels(2, len(rates) + 1, height=2.5) as (figure, grid):
        for column, lr in enumerate(rates):
            for axes, split in zip(grid[:, column], ("test", "train"), strict=True):
                for name, colour in zip(TOLD, ("C0", "C1", "C3"), strict=True):
                    values = losses(rows, lr, name, split).T
                    figures.band(axes, exponents, values, color=colour, marker="o", markersize=3, label=name)
                axes.set(title=f"lr = {lr:g}", ylabel=f"{split} loss", xlabel="p")
                figures.logarithmic(axes)
        for axes, cells, name in (
            (grid[0, -1], _ours(rows, rates, exponents)[:2], "ours: tail over median"),
            (grid[1, -1], _papers()[:2], "the paper's Table 2"),
        ):
            columns, log_lr = cells
            for lr, marker in zip(sorted(set(log_lr)), "os^v", strict=False):
                for tail, colour in (("p95", "C1"), ("p99", "C3")):
                    of_lr = log_lr == lr
                    axes.plot(np.exp(columns["p50"])[of_lr], np.exp(columns[tail])[of_lr], marker, color=colour, ms=4)
            axes.set(title=name, xlabel="p50: each point one p", ylabel="p95, p99")
            figures.logarithmic(axes)
            figures.logarithmic(axes, "x")
        for lr, marker in zip(("smaller", "larger"), "os", strict=True):
            grid[0, -1].plot([], [], marker, color="0.4", ms=4, label=f"the {lr} learning rate")
        figures.legend(figure, columns=5)
        figures.save(figure, given.directory / "figure.png")


CLAIM = _fixed_p.claim(__name__, __doc__, RULE, gradient_ratio.configurations, judge, draw)
