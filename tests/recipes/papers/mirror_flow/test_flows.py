"""Simulated flows of the claims, where the answer is known in closed form."""

import math

import pytest
import torch

from hf_pdyn.theory.mirror import PowerDifference, Product
from papers.mirror_flow._flows import least, simulate, start


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_a_constant_pull_under_decay() -> None:
    """u = (m + w) / sqrt(2) goes as e^(F - 2 alpha)t under a force F, v as e^(-F - 2 alpha)t."""
    of = Product(f64(1.2), f64(0.3))
    flow = simulate(
        of.g,
        of.h,
        start(of),
        grad_f=lambda x: f64(-0.7),
        alpha=lambda t: 0.2,
        times=[0.0, 0.5, 1.0],
        weight=lambda a: math.exp(a),
    )
    t = f64(0, 0.5, 1)[:, None]
    u, v = 1.5 * torch.exp((0.7 - 0.4) * t), 0.9 * torch.exp((-0.7 - 0.4) * t)
    torch.testing.assert_close(flow.x, (u**2 - v**2) / 4, rtol=1e-11, atol=0)
    torch.testing.assert_close(flow.a, -0.2 * t)
    torch.testing.assert_close(flow.mu, 0.7 * (1 - torch.exp(-0.2 * t)) / 0.2, rtol=1e-11, atol=1e-13)


def test_a_flow_that_escapes_is_told() -> None:
    of = PowerDifference(f64(1.0), f64(0.5), 3)
    with pytest.raises(ArithmeticError, match="the flow ends at t = "):
        simulate(of.g, of.h, start(of), grad_f=lambda x: f64(-5), alpha=lambda t: 0.0, times=[0.0, 10.0])


def test_the_least_of_a_potential_among_solutions() -> None:
    """grad R_a is in the row space of Z there: it has nothing along the solutions, x = (s, 1 - 2 s)."""
    of = Product(f64(1.1, 0.9), f64(0.2, -0.1))
    x = least(of, [0.0, -0.5, -1.0], f64(2, 1)[None], f64(1))
    assert float(f64(2, 1) @ x) == pytest.approx(1)
    assert float(of.gradient(x, -1.0) @ f64(1, -2)) == pytest.approx(0, abs=1e-10)
