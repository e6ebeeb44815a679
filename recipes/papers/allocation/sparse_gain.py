"""Claim 3: the gain of a rarely active input goes as its activation probability to the power -p (IAD Eqs. 27-30).

    python recipes/claim.py sparse_gain

A linear layer whose inputs are active with probabilities from 0.005 to 1 is trained with the stock Trainer; log
gain, (v_hat + eps)^-p from the optimizer's second moments, is fitted by a line over log probability, for every p.
Once as the paper assumes, where noise makes the gradients, and where its assumptions fail: eps as large as the second
moment of an input that is active with a probability of 0.01, 0.1, or 1, and inputs that correlate with the residual.
Quick and full are the same.

The paper's: Eqs. 27 to 30, of independent inputs and small eps. Ours: all numbers, and the cases in which that fails.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import stats

from hf_pdyn.sweep import statistics
from hf_pdyn.sweep.outcome import ALL_RULE, Identity, all_of
from hf_pdyn.theory import minimal_model
from papers._claims import figures
from papers._claims.claim import Claim
from papers._claims.linear import LinearRegression, LinearTraining, Samples, sparse_inputs, train_linear
from papers._claims.options import Options
from papers._claims.rows import Configuration, Result, Row, chosen
from papers._claims.verdict import Part, Verdict

EXPONENTS = (-0.4, -0.2, 0.0, 0.2, 0.3, 0.5)
EPS_CASES = {"eps 0.01": 0.01, "eps 0.1": 0.1, "eps 1": 1.0}
"""eps by the activation probability whose second moment it equals, under noise of variance 1."""
CASES = ("noise", *EPS_CASES, "correlated")
LEVELS, COPIES = 12, 8
BATCH = 64
CLOSE = 0.1
TOLERANCE = 1e-12
RULE = f"""Under noise, for every p but 0: the fitted slope over -p agrees with 1. Tolerance: {CLOSE:g}. {ALL_RULE}
{statistics.AGREEMENT_RULE} The other cases show where it breaks, and have no part in the verdict. For p=0 all gains
are 1, an identity, for which the largest slope must be below {TOLERANCE:g}."""


def activations(levels: int = LEVELS, copies: int = COPIES) -> torch.Tensor:
    """The probability of every input: so many levels of them, so many inputs each."""
    return torch.logspace(math.log10(0.005), 0, levels).repeat_interleave(copies)


def configurations(given: Options) -> list[Configuration]:
    """Every case and p. Learning rates are so small that the residual stays what it is in the beginning."""
    return [
        {"case": case, "p": p, "eps": EPS_CASES.get(case, 1e-12) / BATCH, "levels": LEVELS, "copies": COPIES}
        | {"lr": 1e-7, "batch_size": BATCH, "steps": 1000, "samples": 8192, "seed": seed}
        for case in CASES
        for p in EXPONENTS
        for seed in range(given.seeds)
    ]


def run(configuration: Configuration, given: Options) -> Result:
    """Train one layer; return the gains, and the line through them."""
    generator = torch.Generator().manual_seed(configuration["seed"])
    levels, copies = configuration["levels"], configuration["copies"]
    pi = activations(levels, copies)
    X = sparse_inputs(pi, configuration["samples"], generator)  # noqa: N806
    if configuration["case"] == "correlated":
        target = X.sum(1, keepdim=True)
    else:
        target = torch.randn(len(X), 1, generator=generator)
    names = ("p", "lr", "eps", "steps", "batch_size")
    model = LinearRegression(len(pi), 1, bias=False)
    training = LinearTraining(**{name: configuration[name] for name in names})
    trainer = train_linear(model, Samples(X, target), training, configuration["seed"], given.device)
    (weight,) = model.parameters()
    beta2 = trainer.optimizer.param_groups[0]["betas"][1]
    v_hat = trainer.optimizer.state[weight]["exp_avg_sq"].double().cpu().flatten() / (1 - beta2**training.steps)
    gain = minimal_model.gain(v_hat, p=training.p, eps=training.eps)
    line = stats.linregress(pi.log().numpy(), gain.log().numpy())
    error = 0.0 if math.isnan(line.stderr) else float(line.stderr)  # of equal gains, p = 0, scipy has none
    by_level = gain.log().view(levels, copies).mean(1)
    return {"slope": float(line.slope), "slope_error": error, "log_gain": by_level.tolist()}


def expected_gain(case: str, p: float, eps: float) -> torch.Tensor:
    """Log gain by level, from the second moments of `theory.allocation`."""
    pi = activations().double()[::COPIES]
    # Correlated: x_j r = -x_j sum_i x_i has mean -1 and mean square 3 + sum_{i != j} pi_i where x_j is active.
    mean = -1.0 if case == "correlated" else 0.0
    sigma_sq = float(2 + COPIES * pi.sum()) if case == "correlated" else 1.0
    v = minimal_model.sparse_second_moment(pi, sigma_sq=sigma_sq, mean=mean, batch=BATCH)
    return minimal_model.gain(v, p=p, eps=eps).log()


def _of(rows: Sequence[Row], case: str, p: float) -> list[Row]:
    return chosen(rows, case=case, p=p)


def _slopes(rows: Sequence[Row], case: str, p: float) -> statistics.Mean:
    return statistics.mean_of([row["result"]["slope"] for row in _of(rows, case, p)])


def _expected_slope(case: str, p: float, eps: float) -> float:
    log_pi = activations().double()[::COPIES].log()
    return float(stats.linregress(log_pi.numpy(), expected_gain(case, p, eps).numpy()).slope)


def judge(rows: Sequence[Row], given: Options) -> Verdict:
    """By RULE."""
    of_noise = {p: np.array([row["result"]["slope"] for row in _of(rows, "noise", p)]) for p in EXPONENTS}
    ratios = [statistics.mean_of(slopes / -p) for p, slopes in of_noise.items() if p]
    told = {case: ", ".join(f"{_slopes(rows, case, p).mean:.3f}" for p in EXPONENTS) for case in CASES}
    errors = [row["result"]["slope_error"] for row in rows]
    spreads = [_slopes(rows, case, p).spread for case in CASES for p in EXPONENTS]
    ps = ", ".join(f"{p:g}" for p in EXPONENTS)
    return Verdict(
        number=3,
        claim="Sparse inputs: gain ~ (activation probability)^-p",
        paper="the slope of log gain against log probability is -p, where eps does not dominate (Eq. 30)",
        measured=f"slopes for p = {ps}: {told['noise']}; with eps as large as the second moment at pi=0.01 "
        f"{told['eps 0.01']}, at pi=0.1 {told['eps 0.1']}, at pi=1 {told['eps 1']}; with "
        f"inputs that correlate with the residual {told['correlated']}; errors of fits up to {max(errors):.2g}, spread "
        f"over seeds up to {max(spreads):.2g}",
        verdict=all_of(statistics.agreement(ratio, 1.0, CLOSE) for ratio in ratios),
        parts={"p = 0": Part(Identity(float(np.abs(of_noise[0.0]).max()), TOLERANCE), "all gains are 1")},
        reason="Near an identity: where noise makes the gradients, second moments are proportional to the probability "
        "by construction, up to sampling. They have a term in pi^2 where an input correlates with the residual, so "
        "the slope goes towards -2p; eps halves it at the probability whose second moment it equals, and flattens it "
        "towards 0 below. Both follow `theory.minimal_model.sparse_gain_slope`.",
        figures={
            case: {
                f"p={p:g}": {
                    "slope": str(_slopes(rows, case, p)),
                    "error_of_fit": float(np.mean([row["result"]["slope_error"] for row in _of(rows, case, p)])),
                    "expected": _expected_slope(case, p, _of(rows, case, p)[0]["configuration"]["eps"]),
                }
                for p in EXPONENTS
            }
            for case in CASES
        },
    )


def draw(rows: Sequence[Row], given: Options) -> None:
    """Log gain over log probability, with what theory expects, by case; and slopes over p."""
    pi = activations()[::COPIES].numpy()
    colours = figures.colours(len(EXPONENTS))
    titles = {"noise": "noise: the paper's case", "correlated": "correlated inputs"}
    titles |= {case: f"eps = v at π = {level:g}" for case, level in EPS_CASES.items()}
    with figures.panels(2, 3, height=2.5) as (figure, grid):
        panels = grid.flatten()
        for axes, case in zip(panels, CASES, strict=False):
            for p, colour in zip(EXPONENTS, colours, strict=True):
                found = _of(rows, case, p)
                values = np.array([row["result"]["log_gain"] for row in found])
                expected = expected_gain(case, p, found[0]["configuration"]["eps"]).numpy()
                # Relative to the gain of inputs that are always active, so that all lines meet.
                figures.band(
                    axes,
                    pi,
                    np.exp(values - values[:, -1:]),
                    color=colour,
                    marker="o",
                    markersize=3,
                    linewidth=0,
                    label=f"p = {p:g}",
                )
                axes.plot(pi, np.exp(expected - expected[-1]), color=colour, linewidth=1)
            axes.set(title=titles[case], xscale="log", xlabel="activation probability π")
            axes.sharey(panels[0])
        figures.logarithmic(panels[0])
        figures.control(panels[1 : len(CASES)])
        for axes in grid[:, 0]:
            axes.set_ylabel("gain, relative to π = 1")
        panels[-1].plot(EXPONENTS, [-p for p in EXPONENTS], color="0.5", linewidth=1)
        for case, marker in zip(CASES, "osvD^", strict=True):
            slopes = [_slopes(rows, case, p) for p in EXPONENTS]
            colour = "black" if case == "noise" else "0.5"
            panels[-1].plot(EXPONENTS, [s.mean for s in slopes], marker, color=colour, markersize=4)
            panels[-1].text(EXPONENTS[-1] + 0.04, slopes[-1].mean, case, color=colour, va="center", fontsize=8)
        panels[-1].set(title="fitted slope, and -p", xlabel="p", xlim=(EXPONENTS[0] - 0.05, EXPONENTS[-1] + 0.42))
        figures.legend(figure, columns=len(EXPONENTS))
        figures.save(figure, given.directory / "figure.png")


CLAIM = Claim(__name__, __doc__, RULE, configurations, run, judge, draw)
