"""Claim 2: p moves the change of outputs between the weight's path and the bias's (IAD section 3.3, prediction 1).

    python recipes/claim.py path_allocation

One linear layer learns a linear target from dense and from sparse inputs. At every step, the change of its outputs
is split into what the weight did, X dW^T, and what the bias did, 1 db^T. If p were only a step size, shares would
not depend on it once the update scale is matched (update_scale=adam). Quick and full are the same.

The paper's: the question, and that p moves the shares; of its single-layer experiment it gives no setting. Ours: sizes,
data, sparsities, learning rate, eps and steps.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import TrainerCallback

from hf_pdyn.sweep import statistics
from hf_pdyn.sweep.outcome import ALL_RULE, all_of
from hf_pdyn.theory import minimal_model
from papers._claims import figures
from papers._claims.claim import Claim
from papers._claims.linear import LinearRegression, LinearTraining, Samples, sparse_inputs, train_linear
from papers._claims.options import Options
from papers._claims.rows import Configuration, Result, Row, chosen
from papers._claims.verdict import Verdict

EXPONENTS = (-0.4, -0.25, -0.1, 0.0, 0.1, 0.25, 0.4, 0.5)
ACTIVATIONS = (0.005, 0.02, 0.1, 0.5, 1.0)
SPARSE = 0.1
SCALES = ("raw", "adam")
BOUND = 0.02
LATE = 0.25
RULE = f"""With the update scale matched: at every activation probability, the weight's mean share moves with p,
either way; at those of {SPARSE:g} and below, it rises, and it rises from p = {LATE:g} to the largest p as well, so that
no share passes for a rising one that has a peak on the way. Bound: {BOUND:g} of share. {ALL_RULE}
{statistics.TREND_RULE} {statistics.EFFECT_RULE}"""


class PathShares(TrainerCallback):
    """At every step, the weight's share in the change of the outputs on all training inputs."""

    def __init__(self, inputs: Tensor) -> None:
        self.inputs = inputs
        self.shares: list[float] = []
        self._before: list[Tensor] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, *, model: LinearRegression, **kwargs: Any) -> None:
        self._before = [param.detach().clone() for param in (model.linear.weight, model.linear.bias)]

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: LinearRegression, **kwargs: Any) -> None:
        after = (model.linear.weight.detach(), model.linear.bias.detach())
        changes = [now - before for now, before in zip(after, self._before, strict=True)]
        self.shares.append(float(minimal_model.weight_share(self.inputs.to(changes[0].device), *changes)))


def configurations(given: Options) -> list[Configuration]:
    """Every p, activation probability, and update scale."""
    return [
        {"p": p, "pi": pi, "update_scale": scale, "inputs": 64, "outputs": 8, "samples": 1024, "noise": 0.5}
        | {"lr": 0.01, "eps": 1e-12, "batch_size": 64, "steps": 200, "seed": seed}
        for scale in SCALES
        for pi in ACTIVATIONS
        for p in EXPONENTS
        for seed in range(given.seeds)
    ]


def run(configuration: Configuration, given: Options) -> Result:
    """Train one layer; return the mean share over all steps, and over the first ten."""
    generator = torch.Generator().manual_seed(configuration["seed"])
    d, k, pi = configuration["inputs"], configuration["outputs"], configuration["pi"]
    X = sparse_inputs(torch.full((d,), pi), configuration["samples"], generator)  # noqa: N806
    # Whatever pi, the weight's part of the target has variance 1, as large as the bias's square.
    target = X @ torch.randn(d, k, generator=generator) / (pi * d) ** 0.5 + torch.randn(k, generator=generator)
    target += configuration["noise"] * torch.randn(target.shape, generator=generator)
    names = ("p", "lr", "eps", "steps", "batch_size", "update_scale")
    shares = PathShares(X)
    train_linear(
        LinearRegression(d, k),
        Samples(X, target),
        LinearTraining(**{name: configuration[name] for name in names}),
        configuration["seed"],
        given.device,
        [shares],
    )
    return {"share": float(np.mean(shares.shares)), "first_share": float(np.mean(shares.shares[:10]))}


def _by_p(rows: Sequence[Row], scale: str, pi: float, name: str = "share") -> list[list[float]]:
    """By p, by seed."""
    return [[row["result"][name] for row in chosen(rows, update_scale=scale, pi=pi, p=p)] for p in EXPONENTS]


def judge(rows: Sequence[Row], given: Options) -> Verdict:
    """By RULE."""
    trends = {
        (scale, pi): statistics.trend(EXPONENTS, _by_p(rows, scale, pi)) for scale in SCALES for pi in ACTIVATIONS
    }
    # A rise is a move as well.
    outcomes = {
        pi: (statistics.effect if pi <= SPARSE else statistics.difference)(trends["adam", pi], BOUND)
        for pi in ACTIVATIONS
    }
    late = {pi: _late(rows, pi) for pi in ACTIVATIONS}
    rises = {pi: statistics.effect(found, BOUND) for pi, found in late.items() if pi <= SPARSE}
    shape = ", ".join(
        f"{found} at pi={pi:g} ({rises.get(pi, 'not asked')}), largest at p={_peak(rows, pi):g}"
        for pi, found in late.items()
    )
    by_pi = ", ".join(f"{trends['adam', pi]} at pi={pi:g} ({outcome})" for pi, outcome in outcomes.items())
    return Verdict(
        number=2,
        claim="Path allocation in one layer: p is not only a step size",
        paper="the weight's share of the output change varies with p once the update scale is matched, and a larger "
        "p raises it where inputs are sparse",
        measured=f"from p=-0.4 to 0.5, matched, the weight's share changes along the fitted line by {by_pi}; "
        f"from p={LATE:g} to 0.5 by {shape}",
        verdict=all_of([*outcomes.values(), *rises.values()]),
        figures={
            f"{scale}, pi={pi:g}": {
                "share": statistics.means_by_p(EXPONENTS, _by_p(rows, scale, pi)),
                "share in the first ten steps": statistics.means_by_p(EXPONENTS, _by_p(rows, scale, pi, "first_share")),
                "trend": str(trend),
            }
            for (scale, pi), trend in trends.items()
        },
    )


def _late(rows: Sequence[Row], pi: float) -> statistics.Mean:
    """The change of the matched share from LATE to the largest p."""
    by_p = np.array(_by_p(rows, "adam", pi), float)
    return statistics.mean_of(by_p[-1] - by_p[EXPONENTS.index(LATE)])


def _peak(rows: Sequence[Row], pi: float) -> float:
    """The p of the largest mean share, matched."""
    return EXPONENTS[int(np.array(_by_p(rows, "adam", pi), float).mean(1).argmax())]


def draw(rows: Sequence[Row], given: Options) -> None:
    """The share over p, by activation probability, raw and matched; below, while all p are where they started."""
    colours = figures.colours(len(ACTIVATIONS))
    spans = {"share": "all steps", "first_share": "first ten steps"}
    with figures.panels(2, 2, height=2.4, sharex=True, sharey=True) as (figure, grid):
        for (row, (name, span)), (column, scale) in itertools.product(enumerate(spans.items()), enumerate(SCALES)):
            axes = grid[row, column]
            for pi, colour in zip(ACTIVATIONS, colours, strict=True):
                values = np.array(_by_p(rows, scale, pi, name), float).T
                figures.band(axes, EXPONENTS, values, color=colour, marker="o", markersize=3, label=f"π = {pi:g}")
            title = {"raw": "Eq. 18", "adam": "update scale matched"}[scale]
            axes.set(title=f"{title}, {span}", ylim=(0, 1))
        for axes in grid[-1]:
            axes.set_xlabel("p")
        for axes in grid[:, 0]:
            axes.set_ylabel("weight's share")
        figures.legend(figure, columns=len(ACTIVATIONS))
        figures.save(figure, given.directory / "figure.png")


CLAIM = Claim(__name__, __doc__, RULE, configurations, run, judge, draw)
