"""Claim 4 (ours): what a larger learning rate does changes sign at p* = C_beta / (2 C_rho).

    python recipes/claim.py sign_flip

Where gradients are far above eps, the bias term is (lr/2) (C_beta - 2 p C_rho) times the gradient of N_p. So to first
order in the learning rate, whatever a finite step changes, it changes in proportion to p* - p: below p* the p-update
penalises N_p, above it protects N_p, and at p* its first-order bias is nothing. Tried in the bilinear model (claim 3)
at several betas, and in a small network on scikit-learn's digits at (0.9, 0.95), with lr, 2 lr and 4 lr. Quick and
full are the same: this is arithmetic, in float64.

The paper's: the bias term at p = 1/2, and the bilinear model. Ours: the claim and all settings.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_pdyn.sweep import statistics
from hf_pdyn.sweep.outcome import ALL_RULE, all_of
from hf_pdyn.theory.modified_flow import neutral_exponent
from papers._claims import figures
from papers._claims.claim import Claim
from papers._claims.options import Options
from papers._claims.rows import Configuration, Result, Row, chosen
from papers._claims.verdict import Verdict
from papers.adam_bias import _valley
from papers.adam_bias._problems import Loss, digits_network, padam_path

BILINEAR, NETWORK = "bilinear model", "digits network"
CASES = (
    *((BILINEAR, betas) for betas in ((0.9, 0.9), (0.9, 0.95), (0.8, 0.95), (0.9, 0.98), (0.0, 0.8))),
    (NETWORK, (0.9, 0.95)),
)
OFFSETS = (-0.1, -0.05, 0.0, 0.05, 0.1)
"""p - p*, of every case."""
FACTORS = (1, 2, 4)
"""What learning rates are multiplied by."""
LRS = {BILINEAR: 1e-3, NETWORK: 5e-5}
"""Learning rates at p = 1/2. For other p, steps at the start are as large."""
STEPS, MOMENTS = 4000, (0.25, 0.5, 1.0)
"""Steps of the network at the smallest learning rate, and shares of them after which norms are compared."""
RESIDUAL = 2.0
"""Where norms of the bilinear model are compared: above the valley, which small p only approach."""
BOUND = 1e-5
TOLERANCES = {BILINEAR: 0.02, NETWORK: 0.03}
RULE = f"""Measured is the log of ||grad E||_1: in the bilinear model at the same loss (residual {RESIDUAL:g}), in the
network at the same times, steps times lr (the mean over a quarter, half and all of the run). Of its change when lr
doubles, the part of first order, by lr, 2 lr and 4 lr: twice the change to 2 lr less half of that from 2 to 4 lr. In
each case it is below zero at p* {OFFSETS[0]:g} and above at p* + {OFFSETS[-1]:g} (effects; bound: {BOUND:g} of that
log), and the p at which it is zero, on a straight line between neighbouring p, agrees with p* within
{TOLERANCES[BILINEAR]:g} in the bilinear model and {TOLERANCES[NETWORK]:g} in the network. {ALL_RULE}
{statistics.EFFECT_RULE} {statistics.AGREEMENT_RULE}"""


def exponents(betas: tuple[float, float]) -> list[float]:
    """Around p*, of a case."""
    return [round(float(neutral_exponent(betas)) + offset, 4) for offset in OFFSETS]


def configurations(given: Options) -> list[Configuration]:
    """Every p of every case."""
    return [
        {"problem": problem, "betas": list(betas), "p": p, "lr": LRS[problem], "eps": 1e-16, "seed": seed}
        | ({"residual": RESIDUAL} if problem == BILINEAR else {"steps": STEPS, "moments": MOMENTS})
        for problem, betas in CASES
        for p in exponents(betas)
        for seed in range(given.seeds)
    ]


def run(configuration: Configuration, _: Options) -> Result:
    """The log of the norm, by learning rate."""
    of = _in_the_bilinear_model if configuration["problem"] == BILINEAR else _in_the_network
    return {"log_norm": [of(configuration, factor) for factor in FACTORS]}


def _in_the_bilinear_model(configuration: Configuration, factor: int) -> float:
    start = _valley.start(configuration["seed"])
    hyperparameters = _hyperparameters(configuration, _valley.loss, start, factor)
    (norm,) = _valley.norms(_valley.steps(start, **hyperparameters), [configuration["residual"]])
    return norm


def _in_the_network(configuration: Configuration, factor: int) -> float:
    start, (loss,) = digits_network(configuration["seed"])
    hyperparameters = _hyperparameters(configuration, loss, start, factor)
    p, steps = hyperparameters.pop("p"), configuration["steps"] // factor
    path = padam_path(itertools.repeat(lambda rows: loss(rows[0]), steps), start, exponents=[p], **hyperparameters)
    wanted = {round(share * steps) for share in configuration["moments"]}
    gradients = [torch.func.grad(loss)(rows[0]) for n, rows in enumerate(path) if n in wanted]
    return float(torch.stack(gradients).abs().sum(-1).log().mean())


def _hyperparameters(configuration: Configuration, loss: Loss, start: Tensor, factor: int) -> dict[str, Any]:
    """With the learning rate at which a step at the start is as large as that of p = 1/2."""
    typical = float(torch.func.grad(loss)(start).square().mean().sqrt())
    lr = factor * configuration["lr"] * typical ** (2 * configuration["p"] - 1)
    return {"lr": lr, **{name: configuration[name] for name in ("p", "betas", "eps")}}


def changes(rows: Sequence[Row], problem: str, betas: tuple[float, float]) -> np.ndarray:
    """The first-order part of the change when lr doubles, (p, seeds)."""
    of_case = [chosen(rows, problem=problem, betas=list(betas), p=p) for p in exponents(betas)]
    found = np.array([[row["result"]["log_norm"] for row in of_p] for of_p in of_case], float)
    one, two = np.moveaxis(np.diff(found, axis=-1), -1, 0)
    return 2 * one - two / 2


def crossing(x: Sequence[float], y: np.ndarray) -> float:
    """Where y first rises through zero, on a straight line between neighbours; NaN where it does not."""
    for i, (below, above) in enumerate(itertools.pairwise(y)):
        if below <= 0 < above:
            return float(x[i] - below * (x[i + 1] - x[i]) / (above - below))
    return float("nan")


def judge(rows: Sequence[Row], given: Options) -> Verdict:
    """By RULE."""
    outcomes, crossings, figures_of = [], {}, {}
    for problem, betas in CASES:
        found, neutral = changes(rows, problem, betas), float(neutral_exponent(betas))
        by_p = [statistics.mean_of(of_p) for of_p in found]
        crossings[problem, betas] = statistics.mean_of([crossing(exponents(betas), of_seed) for of_seed in found.T])
        outcomes += [
            statistics.effect(by_p[0], BOUND, direction=-1),
            statistics.effect(by_p[-1], BOUND, direction=+1),
            statistics.agreement(crossings[problem, betas], neutral, TOLERANCES[problem]),
        ]
        figures_of[f"{problem}, betas {betas}"] = {
            "p*": neutral,
            "p where the change is zero": str(crossings[problem, betas]),
            "change when lr doubles": statistics.means_by_p(exponents(betas), found),
        }
    told = ", ".join(
        f"{_mean(mean)} ({problem} at {betas}, p* = {neutral_exponent(betas):.3f})"
        for (problem, betas), mean in crossings.items()
    )
    return Verdict(
        number=4,
        claim="What doubling the learning rate does to ||grad E||_1 changes sign at p* = C_beta / (2 C_rho)",
        paper="has p = 1/2, where the sign is that of beta - rho; other p, and this claim, are ours",
        measured=f"the norm falls below and rises above p = {told}",
        verdict=all_of(outcomes),
        figures=figures_of,
    )


def _mean(mean: statistics.Mean) -> str:
    return f"{mean.mean:.4f} ± {mean.spread:.4f}"


def draw(rows: Sequence[Row], given: Options) -> None:
    """The change over p, in the bilinear model and in the network; and where it is zero, over p*."""
    with figures.panels(1, 3, height=2.8) as (figure, ((bilinear, network, crossings),)):
        for (problem, betas), colour in zip(CASES, [*figures.colours(len(CASES) - 1), "C3"], strict=True):
            axes = bilinear if problem == BILINEAR else network
            x, found = exponents(betas), changes(rows, problem, betas)
            label = rf"{problem}, $\beta, \rho$ = {betas[0]:g}, {betas[1]:g}"
            figures.band(axes, x, 1000 * found.T, color=colour, marker="o", markersize=3, label=label)
            neutral = float(neutral_exponent(betas))
            axes.axvline(neutral, color=colour, linewidth=1, linestyle=":")
            where = statistics.mean_of([crossing(x, of_seed) for of_seed in found.T])
            crossings.errorbar([neutral], [where.mean], [where.spread], fmt="o", color=colour, markersize=4, capsize=3)
        for axes, title in ((bilinear, BILINEAR), (network, NETWORK)):
            axes.axhline(0, color="0.7", linewidth=1)
            axes.set(title=title, xlabel="p; dotted: p*")
        bilinear.set_ylabel("change of log norm, lr doubled, ‰")
        crossings.axline((0, 0), slope=1, color="0.7", linewidth=1)
        crossings.set(title="where it is zero", xlabel="p*", ylabel="p")
        figures.legend(figure, columns=3)
        figures.save(figure, given.directory / "figure.png")


CLAIM = Claim(__name__, __doc__, RULE, configurations, run, judge, draw)
