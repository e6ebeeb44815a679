"""Formulas of TMF that do not hold, as the paper prints them, to show beside those that do.

Their mistakes are named in each docstring. `torch.func.grad` of a potential is its grad R_a. Shapes as there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hf_pdyn.theory.mirror.hyperbolic import hyperbolic_entropy


def printed_product(x: Tensor, a: float, u0: Tensor, v0: Tensor) -> Tensor:
    """R_a of m * w with h = |m|^2 + |w|^2 (Eq. 8), u0 = (m0 + w0) / sqrt(2) and v0 = (m0 - w0) / sqrt(2).

    Right: a half for the quarter, and c = e^(4a) u0 v0. As printed it is that of u^2 - v^2 with half the squares as h.
    """
    return hyperbolic_entropy(x, 2 * torch.exp(2 * x.new_tensor(a)) * u0 * v0, torch.log(u0 / v0)) / 4


def printed_power_difference(mu: Tensor, a: float, c_u: Tensor, c_v: Tensor, k: int) -> Tensor:
    """The x of u^2k - v^2k at mu (Eq. 9); the paper does not say what c_u and c_v are.

    Right: (c_u - K(a + mu))^-q - (c_v - K(a - mu))^-q with K = 2k(2k - 2), q = k / (k - 1) and c_u = u0^(2-2k). As
    printed x falls with mu whatever c_u and c_v are, so it is no gradient of a convex function.
    """
    K, q = 2 * k * (2 * k - 2), 2 * k / (2 * k - 2)  # noqa: N806
    return (K / (mu + a + c_u)) ** q - (K / (-mu + a + c_v)) ** q


def printed_power_difference_domain(a: float, c_u: Tensor, c_v: Tensor) -> tuple[Tensor, Tensor]:
    """The domain of mu for u^2k - v^2k (below Eq. 9), which shrinks as a falls.

    Right: (a - c_v / K, c_u / K - a), which grows.
    """
    return -c_u - a, c_v + a


def printed_log_difference(x: Tensor, a: float, u0: Tensor, v0: Tensor) -> Tensor:
    """R_a of log u - log v (Appendix B.1), with -2a where +2a belongs for a = -integral of alpha."""
    u_sq, v_sq, zero = u0.square() - 2 * a, v0.square() - 2 * a, torch.zeros_like(x)
    return (u_sq * torch.logaddexp(zero, -2 * x) + v_sq * torch.logaddexp(zero, 2 * x)).sum(-1) / 4


def printed_balanced_log_difference(x: Tensor, a: float, beta: float) -> Tensor:
    """R_a of log u - log v for u0 = v0 = beta (Appendix B.1): half of `printed_log_difference`, with the same -2a."""
    return (beta**2 - 2 * a) * (torch.logaddexp(x, -x)).sum(-1) / 4
