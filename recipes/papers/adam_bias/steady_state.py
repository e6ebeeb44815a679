"""Claim 2 (ours): IBA's Eq. 2.3, which leaves out a transient, is worse than sign descent for 1/(1-rho) steps.

    python recipes/claim.py steady_state

The bias term that the paper prints holds "up to terms that rapidly go to zero": its coefficients are those of n ->
infinity. But the second moment remembers 1/(1-rho) steps, a thousand at Adam's rho = .999. Padam runs for four such
memories on two smooth losses, and three flows are compared with it: without bias, with the steady-state bias, and
with that of step n. Quick and full are the same: this is arithmetic, in float64.

The paper's: Eq. 2.3, and p = 1/2. Ours: the claim, the bias of step n, losses, starts, learning rates; the betas (0.9,
0.999) are Adam's defaults.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_pdyn.sweep import statistics
from hf_pdyn.sweep.outcome import ALL_RULE, all_of
from hf_pdyn.theory.flows import trajectory
from hf_pdyn.theory.modified_flow import memory_coefficient, modified_flow, zeroth_order_flow
from papers._claims import figures
from papers._claims.claim import Claim
from papers._claims.options import Options
from papers._claims.rows import Configuration, Result, Row, chosen
from papers._claims.verdict import Verdict
from papers.adam_bias import _valley
from papers.adam_bias._problems import padam_path, tanh_network

PROBLEMS = {
    "bilinear model": {"eps": 1e-6, "reach": 0.1},
    "tanh network": {"eps": 1e-3, "reach": 0.02},
}
"""eps inside the power; reach: how far sign descent goes in one memory, at every rho."""
BETA = 0.9
SECOND_BETAS = {0.99: 1, 0.999: 5}
"""rho, and how many steps share one coefficient where the flow of step n is solved: that of the middle one, which is
their mean up to a thousandth, since coefficients change over 1/(1-rho) steps."""
MEMORIES, POINTS = 4, 40
"""How long runs are, in memories, and how often they are compared."""
FLOWS = {"zeroth": "no bias: sign descent", "steady": "steady-state bias, as printed", "finite": "bias of step n"}
BOUND = 0.1
RULE = f"""After 1/(1-rho) steps, the largest distance of an entry from Padam's parameters is larger for the flow with
the steady-state bias than for the one without bias, and smaller for the one with the bias of step n: effects, of the
log of either ratio, for each loss and rho. Bound: {BOUND:g} of that log. {ALL_RULE} {statistics.EFFECT_RULE}"""


def configurations(given: Options) -> list[Configuration]:
    """Both losses, at every rho."""
    return [
        {"problem": problem, **setting, "betas": [BETA, rho], "p": 0.5, "memories": MEMORIES, "sharing": sharing}
        | {"seed": seed}
        for problem, setting in PROBLEMS.items()
        for rho, sharing in SECOND_BETAS.items()
        for seed in range(given.seeds)
    ]


def run(configuration: Configuration, _: Options) -> Result:
    """The distance of every flow from Padam, at POINTS times."""
    seed = configuration["seed"]
    if configuration["problem"] == "bilinear model":
        start, loss = _valley.start(seed), _valley.loss
    else:
        start, (loss,) = tanh_network(seed, batches=1)
    beta, rho = configuration["betas"]
    lr = configuration["reach"] * (1 - rho)
    steps = round(configuration["memories"] / (1 - rho))
    between, sharing = steps // POINTS, configuration["sharing"]
    options: dict[str, Any] = {"betas": (beta, rho), "eps": configuration["eps"]}
    path = [rows[0] for rows in padam_path(itertools.repeat(loss, steps), start, lr=lr, **options)]
    options["p"] = configuration["p"]

    def of_step(block: int, theta: Tensor) -> Tensor:
        return modified_flow(loss, theta, lr=lr, steps_done=sharing * block + sharing // 2, **options)

    # The other two do not depend on n, so they are solved in larger steps.
    large: dict[str, Any] = {"lrs": [lr * between] * POINTS, "substeps": 5}
    flows = {
        "zeroth": list(trajectory(lambda _, theta: zeroth_order_flow([loss], theta, **options), start, **large)),
        "steady": list(trajectory(lambda _, theta: modified_flow(loss, theta, lr=lr, **options), start, **large)),
        "finite": list(trajectory(of_step, start, lrs=[lr * sharing] * (steps // sharing)))[:: between // sharing],
    }
    padam = torch.stack(path[::between])
    return {
        "distances": {name: (torch.stack(points) - padam).abs().amax(-1).tolist()[1:] for name, points in flows.items()}
    }


def ratios(rows: Sequence[Row], problem: str, rho: float, flow: str) -> np.ndarray:
    """The log of the distance of a flow over that of the one without bias, (seeds, POINTS)."""
    found = [row["result"]["distances"] for row in chosen(rows, problem=problem, betas=[BETA, rho])]
    of_flow, without = (np.array([distances[name] for distances in found], float) for name in (flow, "zeroth"))
    return np.log(of_flow / without)


def worse_until(ratio: np.ndarray) -> float:
    """The memories after which a ratio's log, over POINTS, stays below zero; infinite where it never does."""
    times = np.arange(1, POINTS + 1) * MEMORIES / POINTS
    last = np.flatnonzero(ratio > 0)[-1] if (ratio > 0).any() else -1
    return float(times[last + 1]) if last + 1 < POINTS else np.inf


def expected_until(rho: float) -> float:
    """The same from coefficients alone, for eps far below g^2 and a Hessian that stays: memories until the sums of what
    either flow leaves out of Adam's coefficient C_beta(n) - C_rho(n) are equal."""
    steps = range(round(MEMORIES / (1 - rho)))
    exact = np.array([memory_coefficient(BETA, n) - memory_coefficient(rho, n) for n in steps])
    steady = memory_coefficient(BETA) - memory_coefficient(rho)
    left_out = np.cumsum(np.abs(steady - exact)), np.cumsum(np.abs(exact))
    return float((np.flatnonzero(left_out[0] > left_out[1])[-1] + 1) * (1 - rho))


def judge(rows: Sequence[Row], given: Options) -> Verdict:
    """By RULE."""
    at_one = POINTS // MEMORIES - 1
    settings = list(itertools.product(PROBLEMS, SECOND_BETAS))
    after_one = {
        (flow, *setting): statistics.mean_of(ratios(rows, *setting, flow)[:, at_one])
        for flow in ("steady", "finite")
        for setting in settings
    }
    outcomes = [
        statistics.effect(mean, BOUND, direction=+1 if flow == "steady" else -1)
        for (flow, *_), mean in after_one.items()
    ]
    until = {setting: [worse_until(ratio) for ratio in ratios(rows, *setting, "steady")] for setting in settings}
    told = "; ".join(
        f"{problem}, rho={rho:g}: {np.exp(after_one['steady', problem, rho].mean):.1f} x and "
        f"{np.exp(after_one['finite', problem, rho].mean):.3f} x"
        for problem, rho in settings
    )
    lasts = ", ".join(f"{problem}, rho={rho:g}: {_span(found)}" for (problem, rho), found in until.items())
    expected = ", ".join(f"{expected_until(rho):.2f} at rho={rho:g}" for rho in SECOND_BETAS)
    return Verdict(
        number=2,
        claim="The printed steady-state bias is worse than none for the first 1/(1-rho) steps; that of step n is not",
        paper="Eq. 2.3 holds up to terms that rapidly go to zero as n grows; the finite-n form and this claim are ours",
        measured=f"after 1/(1-rho) steps, distance from Adam over that of sign descent, with the steady-state bias and "
        f"with that of step n: {told}",
        verdict=all_of(outcomes),
        reason=f"The steady-state bias becomes better than none after so many times 1/(1-rho) steps: {lasts}. From the "
        f"coefficients alone: {expected}.",
        figures={
            f"{problem}, rho={rho:g}": {
                **{f"log ratio, {FLOWS[flow]}": str(after_one[flow, problem, rho]) for flow in ("steady", "finite")},
                "worse until, in 1/(1-rho) steps": until[problem, rho],
                "expected": expected_until(rho),
            }
            for problem, rho in settings
        },
    )


def _span(times: Sequence[float]) -> str:
    """From the smallest to the largest."""
    low, high = (f"{time:g}" if np.isfinite(time) else f"more than {MEMORIES}" for time in (min(times), max(times)))
    return low if low == high else f"{low} to {high}"


def draw(rows: Sequence[Row], given: Options) -> None:
    """Distances over that of the flow without bias, by steps; every seed, and their mean."""
    times = np.arange(1, POINTS + 1) * MEMORIES / POINTS
    shape = (len(PROBLEMS), len(SECOND_BETAS))
    with figures.panels(*shape, sharex=True, sharey=True) as (figure, grid):
        for axes, (problem, rho) in zip(grid.flat, itertools.product(PROBLEMS, SECOND_BETAS), strict=True):
            for flow, colour in (("steady", "C3"), ("finite", "C0")):
                ratio = np.exp(ratios(rows, problem, rho, flow))
                axes.semilogy(times, ratio.T, color=colour, linewidth=0.6, alpha=0.5)
                axes.semilogy(times, np.exp(np.log(ratio).mean(0)), color=colour, label=FLOWS[flow])
            axes.axhline(1, color="0.4", label=FLOWS["zeroth"])
            axes.axvline(1, color="0.6", linewidth=1, linestyle=":")
            axes.set(title=rf"{problem}, $\rho$ = {rho:g}")
        for axes in grid[-1]:
            axes.set_xlabel(r"steps x (1 - $\rho$)")
        for axes in grid[:, 0]:
            axes.set_ylabel("distance from Adam,\nover sign descent's")
        figures.legend(figure)
        figures.save(figure, given.directory / "figure.png")


CLAIM = Claim(__name__, __doc__, RULE, configurations, run, judge, draw)
