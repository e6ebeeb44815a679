"""Claim 12 (ours): with the update scale matched, does only p_w - p_b matter (Eq. 23)?

    python recipes/claim.py label_p

Weights and bias-like parameters have a p each. By Eq. 23 the ratio of two updates goes as (v_j / v_i)^p, so that with
one second moment for all of a network p_w = p_b would leave the allocation as it is, whatever its value, and only the
difference of the two would move it. Networks of the setting of claims 4 to 7, update_scale=adam, at two learning
rates, with p_w = p_b falling from 0.5 to 0; with p_w = 0.5 and p_b falling from 0.5 to 0; and with the p of
normalisation alone, or of the classifier's bias alone, at 0.

The paper's: Eq. 23, one p for all. Ours: all else.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hf_pdyn.sweep import statistics
from hf_pdyn.sweep.outcome import CONFIRMED, INCONCLUSIVE, NO_EFFECT, OPPOSITE, Outcome
from papers._claims import figures, paired
from papers._claims.claim import Claim
from papers._claims.options import Options
from papers._claims.rows import Configuration, Result, Row, chosen
from papers._claims.stacked_training import Training
from papers._claims.sweep import WorkTogether
from papers._claims.verdict import Part, Verdict
from papers.allocation import _setting
from papers.allocation._strategies import accuracy, number, short


@dataclass(frozen=True)
class Exponents:
    """p of weights, of normalisation, and of the classifier's bias."""

    weight: float
    norm: float
    bias: float


ADAM = Exponents(0.5, 0.5, 0.5)
TOGETHER = (Exponents(0.0, 0.0, 0.0), Exponents(0.25, 0.25, 0.25), ADAM)
"""p_w - p_b = 0."""
APART = (Exponents(0.5, 0.0, 0.0), Exponents(0.5, 0.25, 0.25), ADAM)
"""p_w = 0.5."""
ALONE = {"norms alone": Exponents(0.5, 0.0, 0.5), "bias alone": Exponents(0.5, 0.5, 0.0)}
CELLS = tuple(dict.fromkeys((*TOGETHER, *APART, Exponents(0.25, 0.0, 0.0), *ALONE.values())))
RATES = (3e-3, 1e-2)
FACTOR, POINT = 1.1, 0.005
OPTIONS = _setting.options(quick={"epochs": 40, "test_images": 10000}, full={"train_images": 49000})
LOGS = {"log U_w/U_b": ("update_w", "update_b"), "log G_w/G_b": ("D_w", "D_b")}
"""Curves of the ratios, of which the mean log over the second half of training is kept."""
QUANTITIES: dict[str, tuple[float, Callable[[Result], float]]] = {
    **{name: (float(np.log(FACTOR)), number(name)) for name in LOGS},
    "test accuracy": (POINT, accuracy),
}
"""With the bounds below which a change is none."""
RULE = f"""Of three quantities (mean logs of U_w/U_b and G_w/G_b over the second half of training, and the last test
accuracy), at two learning rates: the change from p = 0.5 everywhere to p = 0 everywhere, which leaves p_w - p_b at 0,
and the change to p_b = 0 with p_w = 0.5, seed by seed. Bounds: factors of {FACTOR:g}, and half a point. Only the
difference matters, for a quantity at a learning rate, where the first change has no effect and the second has one,
either way: then confirmed; opposite where the first change has an effect; no effect where neither has; else
inconclusive. The verdict is that of U_w/U_b and G_w/G_b at both learning rates: opposite where one is, else
inconclusive where one is, else no effect where one is, else confirmed. Parts. Each quantity. by label: the change that
p = 0 makes to U_w/U_b, either way, for normalisation alone and for the classifier's bias alone, joined alike. same
difference: a change of the three quantities, either way, from p_w = 0.5, p_b = 0.25 to p_w = 0.25, p_b = 0, by the same
bounds: confirmed where one has it, else inconclusive where one is, else no effect. {paired.PAIRED_RULE}"""


def configurations(given: Options) -> list[Configuration]:
    """Every seed, cell and learning rate."""
    return [
        _setting.configuration(
            given,
            Training(cell.weight, lr, seed, p_norm=cell.norm, p_bias=cell.bias, update_scale="adam"),
            split=seed,
        )
        for seed in range(given.seeds)
        for lr in RATES
        for cell in CELLS
    ]


def run_together(configurations: Sequence[Configuration], given: Options) -> list[Result]:
    """What rules and figures read of each."""
    found = _setting.train(configurations, given, measured_after=[configurations[0]["epochs"]])
    return [_kept(one) for one in found]


def _kept(result: Result) -> Result:
    last = result["measured"][max(result["measured"], key=int)]["table_2"]
    return {
        **{name: short(_mean_log(result, *curves)) for name, curves in LOGS.items()},
        "test_accuracy": last["test"]["accuracy"],
        "test_loss": last["test"]["mean"],
        "train_accuracy": last["train"]["accuracy"],
    }


def _mean_log(result: Result, over: str, under: str) -> float:
    curves = [np.array(result["curves"][name], float) for name in (over, under)]
    half = len(curves[0]) // 2
    return float(np.mean(np.log(curves[0][half:] / curves[1][half:])))


def values(rows: Sequence[Row], cell: Exponents, lr: float, quantity: str) -> np.ndarray:
    """By seed."""
    of = chosen(rows, p=cell.weight, p_norm=cell.norm, p_bias=cell.bias, lr=lr)
    return np.array([QUANTITIES[quantity][1](row["result"]) for row in of], float)


def change(rows: Sequence[Row], one: Exponents, other: Exponents, lr: float, quantity: str) -> np.ndarray:
    """From one cell to the other, seed by seed."""
    return values(rows, other, lr, quantity) - values(rows, one, lr, quantity)


def only_the_difference(rows: Sequence[Row], lr: float, quantity: str) -> Outcome:
    """By RULE, for a quantity at a learning rate."""
    bound = QUANTITIES[quantity][0]
    level = paired.difference(change(rows, ADAM, TOGETHER[0], lr, quantity), bound)
    moved = paired.difference(change(rows, ADAM, APART[0], lr, quantity), bound)
    if level is CONFIRMED:
        return OPPOSITE
    if level is NO_EFFECT and moved in (CONFIRMED, NO_EFFECT):
        return moved
    return INCONCLUSIVE


def of_all(outcomes: Sequence[Outcome]) -> Outcome:
    """By RULE."""
    return next(one for one in (OPPOSITE, INCONCLUSIVE, NO_EFFECT, CONFIRMED) if one in outcomes)


def judge(rows: Sequence[Row], given: Options) -> Verdict:
    """By RULE."""
    found = {(quantity, lr): only_the_difference(rows, lr, quantity) for quantity in QUANTITIES for lr in RATES}
    of = {quantity: [found[quantity, lr] for lr in RATES] for quantity in QUANTITIES}
    return Verdict(
        number=12,
        claim="With the update scale matched, only p_w - p_b matters",
        paper="Eq. 23 with one second moment for all coordinates of a pathway; one p for all",
        measured=_told(rows, "log U_w/U_b") + "; " + _told(rows, "log G_w/G_b"),
        verdict=of_all([*of["log U_w/U_b"], *of["log G_w/G_b"]]),
        reason="Train accuracy at the end is at least "
        f"{min(row['result']['train_accuracy'] for row in rows):.3g} in every run.",
        parts={quantity: Part(of_all(of[quantity]), _told(rows, quantity)) for quantity in QUANTITIES}
        | {"by label": _by_label(rows), "same difference": _same_difference(rows)},
        figures={
            f"lr={lr:g}": {
                f"p_w={cell.weight:g}, p_norm={cell.norm:g}, p_bias={cell.bias:g}": {
                    quantity: str(statistics.mean_of(values(rows, cell, lr, quantity))) for quantity in QUANTITIES
                }
                for cell in CELLS
            }
            for lr in RATES
        },
    )


def _told(rows: Sequence[Row], quantity: str) -> str:
    told = [
        f"lr {lr:g}: {statistics.mean_of(change(rows, ADAM, TOGETHER[0], lr, quantity))} with all p to 0, "
        f"{statistics.mean_of(change(rows, ADAM, APART[0], lr, quantity))} with p_b to 0 "
        f"({only_the_difference(rows, lr, quantity)})"
        for lr in RATES
    ]
    return f"{quantity} moves by, {', '.join(told)}"


def _by_label(rows: Sequence[Row]) -> Part:
    quantity = "log U_w/U_b"
    found = {(name, lr): change(rows, ADAM, cell, lr, quantity) for name, cell in ALONE.items() for lr in RATES}
    told = ", ".join(f"{name} at {lr:g} {statistics.mean_of(moved)}" for (name, lr), moved in found.items())
    outcomes = [paired.difference(moved, QUANTITIES[quantity][0]) for moved in found.values()]
    return Part(of_all(outcomes), f"{quantity} moves by: {told}")


def _same_difference(rows: Sequence[Row]) -> Part:
    outcomes, told = [], []
    for quantity, (bound, _) in QUANTITIES.items():
        for lr in RATES:
            moved = change(rows, APART[1], Exponents(0.25, 0.0, 0.0), lr, quantity)
            outcomes.append(paired.difference(moved, bound))
            told.append(f"{quantity} at {lr:g} {statistics.mean_of(moved)} ({outcomes[-1]})")
    outcome = next(one for one in (CONFIRMED, INCONCLUSIVE, NO_EFFECT) if one in outcomes)
    return Part(outcome, f"moves by: {', '.join(told)}")


def draw(rows: Sequence[Row], given: Options) -> None:
    """Each quantity over p_b: with p_w alike, with p_w at 0.5, and with one label's p alone at 0."""
    with figures.panels(len(RATES), len(QUANTITIES), height=2.4, sharex=True) as (figure, grid):
        for line, lr in zip(grid, RATES, strict=True):
            for axes, quantity in zip(line, QUANTITIES, strict=True):
                times = 100 if quantity == "test accuracy" else 1
                for i, (name, cells) in enumerate({"p_w = p_b": TOGETHER, "p_w = 0.5": APART}.items()):
                    of = times * np.array([values(rows, cell, lr, quantity) for cell in cells]).T
                    exponents = [cell.norm for cell in cells]
                    figures.band(axes, exponents, of, color=f"C{i}", marker="o", markersize=3, label=name)
                for i, (name, cell) in enumerate(ALONE.items(), 2):
                    of_cell = times * values(rows, cell, lr, quantity)
                    axes.errorbar(
                        [0.02 * i], of_cell.mean(), of_cell.std(ddof=1), color=f"C{i}", marker="s", markersize=4,
                        linestyle="none", label=f"{name} at 0",
                    )  # fmt: skip
                axes.set(title=f"{quantity}{' (%)' if times > 1 else ''}, lr = {lr:g}")
        for axes in grid[-1]:
            axes.set_xlabel("p of bias-like parameters")
        figures.legend(figure)
        figures.save(figure, given.directory / "figure.png")


CLAIM = Claim(
    __name__,
    __doc__,
    RULE,
    configurations,
    WorkTogether(run_together),
    judge,
    draw,
    options=OPTIONS,
    seeds=paired.FEWEST_SEEDS,
)
