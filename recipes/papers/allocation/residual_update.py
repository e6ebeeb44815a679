"""Claim 1: the residual after an update is the old one less a weight term and a bias term (IAD Eqs. 8-16, 24-26).

    python recipes/claim.py residual_update

Padam trains linear models in float64; before every step the two terms are computed from its moments, and after it the
residual is compared with what they predict. Quick and full are the same: this is arithmetic.

The paper's: the equations, of plain gradients. Ours: sizes, data, float64, momentum, and every p.
"""

import random
from collections.abc import Sequence

import torch

from hf_pdyn import Padam
from hf_pdyn.sweep import statistics
from hf_pdyn.sweep.outcome import Identity
from hf_pdyn.theory import minimal_model
from papers._claims import figures
from papers._claims.claim import Claim
from papers._claims.options import Options
from papers._claims.rows import Configuration, Result, Row
from papers._claims.verdict import Verdict

EXPONENTS = (-0.4, -0.2, 0.0, 0.2, 0.25, 0.3, 0.5, 1.0)
STEPS = 50
TOLERANCE = 1e-12
RULE = f"""An identity, for which the largest error of {STEPS} steps, relative to the largest residual before or after
the step, must be below {TOLERANCE:g} for every p and seed (float64 rounds to 1.1e-16, and a residual is a sum of up
to 33 products)."""


def configurations(given: Options) -> list[Configuration]:
    """Every p, with and without momentum."""
    return [
        {"p": p, "betas": list(betas), "n": 64, "d": 32, "lr": 0.05, "eps": 1e-10, "steps": STEPS, "seed": seed}
        for betas in ((0.0, 0.0), (0.9, 0.999))
        for p in EXPONENTS
        for seed in range(given.seeds)
    ]


def run(configuration: Configuration, _: Options) -> Result:
    """Train one model; return the largest relative error, and the mean share of the weight term."""
    generator = torch.Generator().manual_seed(configuration["seed"])
    n, d = configuration["n"], configuration["d"]
    X, y = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((n, d), (n,)))  # noqa: N806
    w = torch.randn(d, generator=generator, dtype=torch.float64, requires_grad=True)
    b = torch.randn((), generator=generator, dtype=torch.float64, requires_grad=True)
    beta1, beta2 = configuration["betas"]
    update = {name: configuration[name] for name in ("lr", "p", "eps")}
    optimizer = Padam([w, b], betas=(beta1, beta2), weight_decay=0.0, **update)
    errors, shares = [], []
    for t in range(1, configuration["steps"] + 1):
        before = minimal_model.residual(X, w, b, y)
        optimizer.zero_grad()
        (before.square().sum() / (2 * n)).backward()
        optimizer.step()
        m_hat = [optimizer.state[param]["exp_avg"] / (1 - beta1**t) for param in (w, b)]
        v_hat = [optimizer.state[param]["exp_avg_sq"] / (1 - beta2**t) for param in (w, b)]
        taken = minimal_model.corrections(X, *m_hat, *v_hat, **update)
        after = minimal_model.residual(X, w, b, y).detach()
        error = (before.detach() - taken.weight - taken.bias - after).abs().max()
        errors.append(float(error / torch.maximum(before.detach().abs().max(), after.abs().max())))
        norms = [float(torch.linalg.vector_norm(term)) for term in taken]
        shares.append(norms[0] / sum(norms))
    return {"largest_error": max(errors), "weight_share": sum(shares) / len(shares)}


def judge(rows: Sequence[Row], given: Options) -> Verdict:
    """By RULE."""
    largest = max(row["result"]["largest_error"] for row in rows)
    return Verdict(
        number=1,
        claim="Minimal model: r+ = r - (lr/n) X Q_w X^T r - (lr/n) q_b 11^T r",
        paper="holds for any p (Eqs. 16, 26); with momentum, m_hat stands for the gradients",
        measured=f"largest relative error {largest:.1e} over {len(rows)} trainings of {STEPS} steps",
        verdict=Identity(largest, TOLERANCE),
        figures={"largest_error": largest, "weight_share": {str(p): str(share) for p, share in _shares(rows).items()}},
    )


def _shares(rows: Sequence[Row], beta2: float = 0.999) -> dict[float, statistics.Mean]:
    of_p: dict[float, list[float]] = {}
    for row in rows:
        if row["configuration"]["betas"][1] == beta2:
            of_p.setdefault(row["configuration"]["p"], []).append(row["result"]["weight_share"])
    return {p: statistics.mean_of(shares) for p, shares in of_p.items()}


def draw(rows: Sequence[Row], given: Options) -> None:
    """The errors of all trainings, and how the residual's correction is shared."""
    with figures.panels(1, 2, height=2.6) as (figure, ((errors, shares),)):
        for betas, colour in (([0.0, 0.0], "C0"), ([0.9, 0.999], "C1")):
            of_betas = [row for row in rows if row["configuration"]["betas"] == betas]
            jitter = random.Random(0)
            x = [row["configuration"]["p"] + jitter.uniform(-0.012, 0.012) for row in of_betas]
            y = [row["result"]["largest_error"] for row in of_betas]
            errors.semilogy(x, y, "o", color=colour, markersize=4, label=f"betas {tuple(betas)}")
        errors.axhline(TOLERANCE, color="0.5", linestyle="--", linewidth=1, label="tolerance")
        errors.set(title="largest error of the residual update", xlabel="p", ylabel="relative to the residual")
        by_p = _shares(rows)
        shares.errorbar(
            list(by_p),
            [s.mean for s in by_p.values()],
            [s.spread for s in by_p.values()],
            marker="o",
            color="C1",
            capsize=3,
        )
        shares.set(title="share of the weight term", xlabel="p", ylabel="||weight|| / (||weight|| + ||bias||)")
        figures.legend(figure)
        figures.save(figure, given.directory / "figure.png")


CLAIM = Claim(__name__, __doc__, RULE, configurations, run, judge, draw)
