"""Claim 3: weight decay leaves its mark on the geometry of diagonal linear networks (TMF Appendix B.1, Figs. 5 and 6).

    python recipes/claim.py diagonal_networks

Sparse regression, 40 samples of 100 inputs, of which 5 matter, by gradient descent on m under an L1 penalty, on m*w and
on m*w*z under weight decay: 100,000 steps with decay and as many without. Beside Figs. 5 and 6: m*w from a small start
without decay, where R_a is the same; the end of m*w as R_a has it, by the formulas that hold and as printed; and many
short runs of m*w*z, to see where the paper's 1.58 comes from. Quick and full are the same.

The paper's: sizes, steps, learning rate, decays, starts, the mean squared error. Ours: decay as optimizers apply it, a
gradient of decay times the parameter, where the paper does not say how; seeds, and what stands beside the figures.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hf_pdyn.sweep import statistics
from hf_pdyn.sweep.outcome import ALL_RULE, CONFIRMED, NO_EFFECT, Outcome, all_of
from hf_pdyn.theory.mirror import Product
from papers._claims import figures
from papers._claims.claim import Claim
from papers._claims.options import Options
from papers._claims.rows import Configuration, Result, Row, chosen
from papers._claims.verdict import Part, Verdict
from papers.mirror_flow._flows import least

SAMPLES, INPUTS, RELEVANT = 40, 100, 5
LR, STEPS = 1e-3, 100_000
DECAYS = (0.01, 0.1, 1.0)
FACTORS = {"m": 1, "m*w": 2, "m*w*z": 3}
SMALL_STARTS = (0.01, 0.1)
"""The decays whose R_a a small start of m*w has without decay."""
START = {"m = 0": 0.0, "m = 1": 1.0}
"""Where the first factor starts; the paper's is 0. The others start at 1."""
ALIVE = 1e-6
PRINTED_VALUE, NEAR = 1.58, 0.05
DRAWS, DRAW_LR, DRAW_STEPS, DRAW_DECAYS = 40, 5e-3, 4000, (1.0, 2.0)
LOG_BOUND, RATIO_BOUND, TOLERANCE = 0.1, 0.1, 0.01
TRUTH = math.sqrt(RELEVANT)
"""L1 over L2 norm of x*."""

RULE = f"""Figs. 5 and 6, the verdict, of the first six parts. The log distance to x* at the end, over log decay: it
rises for m; falls for m*w; for m*w*z falls from 0.01 to 0.1 and rises from 0.1 to 1 (bound {LOG_BOUND:g}). The ratio of
L1 to L2 norm with decay 1, from the shutoff to the end: it rises for m; comes nearer to that of x* for m*w (bound
{RATIO_BOUND:g}); stays for m*w*z (a change of 0, tolerance {RATIO_BOUND:g}). Of m*w*z with decay 1: no relevant
parameter is stuck at 0 (the number below {ALIVE:g} at the shutoff is 0, tolerance 0.5); the end is the least-squares
fit on the parameters that are not stuck (their distance over |x*| is 0, tolerance {TOLERANCE:g}). The value
{PRINTED_VALUE:g}: confirmed where the first parameter of a draw from the paper's start with decay 1 ends within
{NEAR:g} of it, else no effect. m*w with decays 0.01 and 0.1 ends where R_a is least (distance over |x*| 0, tolerance
{TOLERANCE:g}), by the formulas that hold and, in a part of its own, by Eq. 8 as printed; and where a start of the same
R_a ends without decay (ours). {statistics.TREND_RULE} {statistics.EFFECT_RULE} {statistics.AGREEMENT_RULE}
{ALL_RULE}"""


@dataclass(frozen=True)
class Problem:
    """Inputs Z (..., d, n), and targets y = Z x* (..., d) of the x* whose first five entries are 1."""

    Z: Tensor
    y: Tensor

    @classmethod
    def of(cls, generator: torch.Generator, *draws: int) -> "Problem":
        Z = torch.randn(*draws, SAMPLES, INPUTS, generator=generator, dtype=torch.float64)  # noqa: N806
        return cls(Z, Z[..., :RELEVANT].sum(-1))


def truth() -> Tensor:
    """x*."""
    return (torch.arange(INPUTS) < RELEVANT).double()


def configurations(given: Options) -> list[Configuration]:
    """Every network with all of its decays, and many short runs of m*w*z."""
    sizes = {"samples": SAMPLES, "inputs": INPUTS, "relevant": RELEVANT}
    networks = [{"network": name, "lr": LR, "steps": STEPS, "decays": list(DECAYS)} for name in FACTORS]
    draws = [
        {"network": "m*w*z", "start": start, "decay": decay, "draws": DRAWS, "lr": DRAW_LR, "steps": DRAW_STEPS}
        for start in START
        for decay in DRAW_DECAYS
    ]
    return [sizes | one | {"seed": seed} for one in (*networks, *draws) for seed in range(given.seeds)]


def run(configuration: Configuration, _: Options) -> Result:
    """Train a network under all decays at once, or on many problems."""
    generator = torch.Generator().manual_seed(configuration["seed"])
    lr, steps = configuration["lr"], configuration["steps"]
    if "draws" in configuration:
        return _draws(Problem.of(generator, configuration["draws"]), configuration)
    return _network(configuration["network"], Problem.of(generator), configuration["decays"], lr, steps)


def _network(name: str, problem: Problem, decays: Sequence[float], lr: float, steps: int) -> Result:
    ends = [-decay * lr * steps for decay in decays if decay in SMALL_STARTS] if name == "m*w" else []
    decay = torch.tensor([*decays, *[0.0] * len(ends)], dtype=torch.float64)[:, None]
    scale = torch.tensor([*[1.0] * len(decays), *map(math.exp, ends)], dtype=torch.float64)[:, None]
    ones = torch.ones(len(decay), INPUTS, dtype=torch.float64)
    factors = [0 * ones, *[scale * ones] * (FACTORS[name] - 1)]
    curves, at = [], []
    for phase, strength in enumerate((decay, 0 * decay)):
        for step, reached in descend(factors, problem, strength, lr, steps):
            curves.append(product(reached))
            at.append(phase * steps + step)
        factors = reached
    x = torch.stack(curves)  # (T, settings, n)
    off, end = x[at.index(steps)], x[-1]
    found = {
        "steps": at,
        "distance": _short((x - truth()).norm(dim=-1)[:, : len(decays)]),
        "ratio": _short((x.abs().sum(-1) / x.norm(dim=-1))[:, : len(decays)]),
        "first": _short(end[: len(decays), 0]),
        "stuck": (off[: len(decays), :RELEVANT].abs() < ALIVE).sum(-1).tolist(),
        "from_fit": [_apart(end[i], _fit(problem, off[i].abs() >= ALIVE)) for i in range(len(decays))],
    }
    if name == "m*w":
        found |= _predicted(problem, end, ends)
    return found


def product(factors: Sequence[Tensor]) -> Tensor:
    """Entry by entry; 1 of none."""
    return functools.reduce(torch.mul, factors) if factors else torch.ones((), dtype=torch.float64)


def descend(
    factors: list[Tensor], problem: Problem, decay: Tensor | float, lr: float, steps: int
) -> Iterator[tuple[int, list[Tensor]]]:
    """Gradient descent on the mean squared error; yields (step, factors) at about fifty steps, the last among them.

    decay: the gradient of a factor gets decay times the factor, or, for a single one, its sign (an L1 penalty).
    """
    H = 2 / SAMPLES * problem.Z.mT @ problem.Z  # noqa: N806
    b = 2 / SAMPLES * (problem.Z.mT @ problem.y[..., None])[..., 0]
    batched = problem.Z.ndim > 2
    kept = {0, steps, *(steps * i // 40 for i in range(1, 41)), *(steps // 10**i for i in range(1, 5))}
    penalty = torch.sign if len(factors) == 1 else torch.clone
    for step in range(steps + 1):
        if step in kept:
            yield step, factors
        x = product(factors)
        slope = ((x[..., None, :] @ H)[..., 0, :] if batched else x @ H) - b
        factors = [
            factor - lr * (slope * product([*factors[:i], *factors[i + 1 :]]) + decay * penalty(factor))
            for i, factor in enumerate(factors)
        ]


def _predicted(problem: Problem, end: Tensor, ends: Sequence[float]) -> Result:
    """How far m*w ends from where R_a is least, by decay of SMALL_STARTS; and from a small start without decay."""
    zeros, ones = torch.zeros(INPUTS, dtype=torch.float64), torch.ones(INPUTS, dtype=torch.float64)
    of = Product(zeros, ones, scale=0.5)

    def least_of(a: float) -> Tensor:
        return least(of, np.linspace(0, a, 41).tolist(), problem.Z, problem.y)

    # c = e^(2a) / 2. As printed c = 2 e^(2b) u0 v0 with the b = a / 2 of h = |m|^2 + |w|^2, the c of another a.
    printed = [(a + math.log(2)) / 2 for a in ends]
    count = len(end) - len(ends)
    return {
        "from_least": [_apart(end[i], least_of(a)) for i, a in enumerate(ends)],
        "from_printed": [_apart(end[i], least_of(a)) for i, a in enumerate(printed)],
        "from_small_start": [_apart(end[i], end[count + i]) for i in range(len(ends))],
    }


def _fit(problem: Problem, alive: Tensor) -> Tensor:
    """The least-squares solution in the parameters that are alive, of least norm."""
    x = torch.zeros(INPUTS, dtype=torch.float64)
    if bool(alive.any()):
        x[alive] = torch.linalg.pinv(problem.Z[:, alive]) @ problem.y
    return x


def _apart(x: Tensor, other: Tensor) -> float:
    return float((x - other).norm() / truth().norm())


def _draws(problem: Problem, configuration: Configuration) -> Result:
    ones = torch.ones(configuration["draws"], INPUTS, dtype=torch.float64)
    factors = [START[configuration["start"]] * ones, ones, ones]
    for decay in (configuration["decay"], 0.0):
        *_, (_, factors) = descend(factors, problem, decay, configuration["lr"], configuration["steps"])
    x = product(factors)
    return {"relevant": _short(x[:, :RELEVANT]), "alive": (x.abs() >= ALIVE).sum(-1).tolist()}


def _short(values: Tensor) -> list:
    return np.vectorize(lambda value: float(f"{value:.6g}"))(values.numpy()).tolist()


def of_network(rows: Sequence[Row], network: str, name: str) -> np.ndarray:
    """A result of a network's runs, (seeds, ...)."""
    found = [row for row in chosen(rows, network=network) if "draws" not in row["configuration"]]
    return np.array([row["result"][name] for row in found], float)


def of_draws(rows: Sequence[Row], name: str, **where: object) -> np.ndarray:
    """A result of all draws, (draws, ...)."""
    return np.concatenate([np.array(row["result"][name], float) for row in chosen(rows, draws=DRAWS, **where)])


def at_the_shutoff(rows: Sequence[Row]) -> int:
    """The place in curves of the last step with decay."""
    steps = next(row["result"]["steps"] for row in rows if "draws" not in row["configuration"])
    return steps.index(steps[-1] // 2)


def judge(rows: Sequence[Row], given: Options) -> Verdict:
    """By RULE."""
    figs = {**_distances(rows), **_ratios(rows)}
    return Verdict(
        number=3,
        claim="Weight decay is stored in the geometry of m*w, not in that of m; m*w*z has a shrinking range",
        paper="Figs. 5 and 6: with more decay m does not end nearer to x*, m*w does; m*w*z does up to 0.1, and with 1 "
        "keeps its ratio, which is not collapse into 0, as its first parameter is 1.58",
        measured=_told_distances(rows),
        verdict=all_of(part.verdict for part in figs.values() if isinstance(part.verdict, Outcome)),
        reason="With decay 1 the parameters of m*w*z whose pull is too weak fall into the saddle at 0, which decay "
        "makes an attractor for more than two factors. The others fit the targets alone, and such a fit can give 1.58.",
        parts={**figs, **_stuck(rows), **_endings(rows)},
        figures=_figures(rows),
    )


def _distances(rows: Sequence[Row]) -> dict[str, Part]:
    found = {name: np.log(of_network(rows, name, "distance")[:, -1]).T for name in FACTORS}  # (decays, seeds)
    logs = np.log(DECAYS)
    trends = {
        "m: more decay does not end nearer": [(statistics.trend(logs, found["m"]), +1)],
        "m*w: more decay ends nearer": [(statistics.trend(logs, found["m*w"]), -1)],
        "m*w*z: nearer up to 0.1, then farther": [
            (statistics.trend(logs[:2], found["m*w*z"][:2]), -1),
            (statistics.trend(logs[1:], found["m*w*z"][1:]), +1),
        ],
    }
    return {
        name: Part(
            all_of(statistics.effect(change, LOG_BOUND, direction=direction) for change, direction in of),
            "change of log distance " + ", then ".join(str(change) for change, _ in of),
        )
        for name, of in trends.items()
    }


def _ratios(rows: Sequence[Row]) -> dict[str, Part]:
    place = at_the_shutoff(rows)
    off, end = ({name: of_network(rows, name, "ratio")[:, at, -1] for name in FACTORS} for at in (place, -1))
    rise = statistics.mean_of(end["m"] - off["m"])
    nearer = statistics.mean_of(np.abs(off["m*w"] - TRUTH) - np.abs(end["m*w"] - TRUTH))
    change = statistics.mean_of(end["m*w*z"] - off["m*w*z"])
    told = {name: f"{off[name].mean():.3g} to {end[name].mean():.3g} (x*: {TRUTH:.3g})" for name in FACTORS}
    return {
        "m, decay 1: the ratio rises after the shutoff": Part(
            statistics.effect(rise, RATIO_BOUND), f"{told['m']}, by {rise}"
        ),
        "m*w, decay 1: the ratio is right only after it": Part(
            statistics.effect(nearer, RATIO_BOUND), f"{told['m*w']}, nearer by {nearer}"
        ),
        "m*w*z, decay 1: the ratio stays": Part(
            statistics.agreement(change, 0.0, RATIO_BOUND), f"{told['m*w*z']}, by {change}"
        ),
    }


def _stuck(rows: Sequence[Row]) -> dict[str, Part]:
    stuck = statistics.mean_of(of_network(rows, "m*w*z", "stuck")[:, -1])
    from_fit = statistics.mean_of(of_network(rows, "m*w*z", "from_fit")[:, -1])
    near = {(start, decay): _near(rows, start, decay) for start in START for decay in DRAW_DECAYS}
    hits, _ = near["m = 0", 1.0]
    told = ", ".join(f"{count} of {of} ({start}, decay {decay:g})" for (start, decay), (count, of) in near.items())
    return {
        "m*w*z, decay 1: not stuck at 0": Part(
            statistics.agreement(stuck, 0.0, 0.5), f"{stuck} of {RELEVANT} relevant parameters are"
        ),
        "m*w*z, decay 1: a fit on what is not stuck (ours)": Part(
            statistics.agreement(from_fit, 0.0, TOLERANCE), f"off by {from_fit} of |x*|"
        ),
        f"the value {PRINTED_VALUE:g}": Part(
            CONFIRMED if hits else NO_EFFECT, f"first parameter within {NEAR:g} of it in {told}"
        ),
    }


def _near(rows: Sequence[Row], start: str, decay: float) -> tuple[int, int]:
    first = of_draws(rows, "relevant", start=start, decay=decay)[:, 0]
    return int((np.abs(first - PRINTED_VALUE) <= NEAR).sum()), len(first)


def _endings(rows: Sequence[Row]) -> dict[str, Part]:
    names = {
        "from_least": "m*w ends where R_a is least (Theorem 3.2, corrected)",
        "from_printed": "m*w ends where R_a is least, Eq. 8 as printed",
        "from_small_start": "m*w ends where a small start ends without decay (ours)",
    }
    parts = {}
    for key, name in names.items():
        off = [statistics.mean_of(of_decay) for of_decay in of_network(rows, "m*w", key).T]
        told = ", ".join(f"{one} with decay {decay:g}" for one, decay in zip(off, SMALL_STARTS, strict=True))
        parts[name] = Part(all_of(statistics.agreement(one, 0.0, TOLERANCE) for one in off), f"off by {told} of |x*|")
    return parts


def _told_distances(rows: Sequence[Row]) -> str:
    told = []
    for name in FACTORS:
        ends = of_network(rows, name, "distance")[:, -1].T
        told.append(f"{name} {', '.join(f'{of.mean():.2g}' for of in ends)}")
    return f"distance to x* at the end, decay {', '.join(f'{decay:g}' for decay in DECAYS)}: {'; '.join(told)}"


def _figures(rows: Sequence[Row]) -> dict[str, object]:
    place = at_the_shutoff(rows)
    found: dict[str, object] = {}
    for name in FACTORS:
        for quantity in ("distance", "ratio"):
            for i, decay in enumerate(DECAYS):
                values = of_network(rows, name, quantity)[:, :, i]
                off, end = (str(statistics.mean_of(values[:, at])) for at in (place, -1))
                found[f"{name}, decay {decay:g}, {quantity}"] = {"at the shutoff": off, "at the end": end}
    found["m*w*z, decay 1, first parameter by seed"] = of_network(rows, "m*w*z", "first")[:, -1].tolist()
    return found


def draw(rows: Sequence[Row], given: Options) -> None:
    """Figs. 5 and 6: distance and ratio over steps. Apart from these, what the draws of m*w*z end with."""
    steps = np.array(rows[0]["result"]["steps"]) / 1000
    with figures.panels(2, 3, sharex=True, sharey="row") as (figure, grid):
        for column, name in enumerate(FACTORS):
            for row, quantity in enumerate(("distance", "ratio")):
                axes, values = grid[row, column], of_network(rows, name, quantity)
                for i, (decay, colour) in enumerate(zip(DECAYS, figures.colours(len(DECAYS)), strict=True)):
                    axes.plot(steps, np.median(values[:, :, i], 0), color=colour, label=f"decay {decay:g}")
                    low, high = values[:, :, i].min(0), values[:, :, i].max(0)
                    axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
                axes.axvline(steps[-1] / 2, color="0.5", linestyle=":", linewidth=1)
            grid[0, column].set(
                title={"m": "m, L1", "m*w": "m w", "m*w*z": "m w z"}[name], yscale="log", ylim=(1e-5, 10)
            )
            grid[1, column].axhline(TRUTH, color="0.5", linestyle="--", linewidth=1)
            grid[1, column].set(xlabel="thousand steps", ylim=(0.8, 9))
        grid[0, 0].set_ylabel("distance to x*")
        grid[1, 0].set_ylabel("L1 / L2 norm")
        figures.legend(figure)
        figures.save(figure, given.directory / "figure.png")
    with figures.panels(1, len(DRAW_DECAYS), sharex=True, sharey=True) as (figure, (panels,)):
        bins = np.arange(-0.025, 2.5, 0.05)
        for axes, decay in zip(panels, DRAW_DECAYS, strict=True):
            for start, style in zip(
                START, ({"color": "C0", "alpha": 0.5}, {"color": "C1", "histtype": "step"}), strict=True
            ):
                axes.hist(of_draws(rows, "relevant", start=start, decay=decay)[:, 0], bins, label=start, **style)
            axes.axvline(PRINTED_VALUE, color="C3", linestyle="--", linewidth=1, label=f"{PRINTED_VALUE:g}")
            axes.set(title=f"m w z, decay {decay:g}", xlabel="first parameter at the end", yscale="log")
        panels[0].set_ylabel("draws")
        figures.legend(figure)
        figures.save(figure, given.directory / "draws.png")


CLAIM = Claim(__name__, __doc__, RULE, configurations, run, judge, draw)
