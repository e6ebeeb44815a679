"""Products of k > 2 factors under weight decay, for which TMF has no theorem (B.3); the formulas are ours.

x = w_1 ... w_k and h = scale * |w|^2 do not commute. Yet w = e^(2 scale a) w^ takes decay out of the flow:

    x_t = e^(2 k scale a_t) x^(mu^_t),    mu^_t = -integral of e^(2 (k - 2) scale a_s) grad f(x_s) ds,

where x^ is the flow without decay. For k = 2 that is `Product`. For k > 2 late gradients count less, and mu^ stays
bounded under constant decay. Where that bound is below the mu^ at which x^ is infinite, x is confined to a range that
shrinks as e^(2 k scale a).

Symbols and shapes: `w0` (k, n), `mu_hat` (..., n), `a` and `scale` as in the package.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hf_pdyn.theory.mirror.flow import Time


def shrinkage(a: Time, *, k: int, scale: float = 1.0) -> Tensor:
    """The factor of x_t to x^(mu^_t), e^(2 k scale a) in the shape of a, float64."""
    return torch.exp(torch.as_tensor(2 * k * scale * a, dtype=torch.float64))


def discount(a: Time, *, k: int, scale: float = 1.0) -> Tensor:
    """The weight in mu^ of the gradient at a, e^(2 (k - 2) scale a), at most 1 for k >= 2; as `shrinkage`."""
    return torch.exp(torch.as_tensor(2 * (k - 2) * scale * a, dtype=torch.float64))


def mu_hat_bound(gradient_bound: float, *, alpha: float, k: int, t: float = math.inf, scale: float = 1.0) -> float:
    """Bound of |mu^_t| for |grad f| <= gradient_bound and constant alpha; infinite as t is, for k = 2 or alpha = 0."""
    rate = 2 * (k - 2) * scale * alpha
    if rate == 0:
        return gradient_bound * t
    return gradient_bound * -math.expm1(-rate * t) / rate


def undecayed(w0: Tensor, mu_hat: Tensor, *, steps: int = 1000) -> Tensor:
    """x^(mu^), (..., n): the product after the flow dw_i = (product of the others) d mu^, from w0, without decay.

    Fourth-order Runge-Kutta in `steps` steps. For k > 2 x^ is infinite at a finite mu^; beyond it the result is not
    finite or has no meaning.
    """
    k = len(w0)
    if k < 2:
        raise ValueError(f"w0 must hold at least 2 factors, (k, n), got shape {tuple(w0.shape)}")
    others = torch.tensor([[j for j in range(k) if j != i] for i in range(k)], device=w0.device)

    def slope(w: Tensor) -> Tensor:
        return w[others].prod(1)  # no division, as a factor may be 0

    w, step = w0.view(k, *[1] * (mu_hat.ndim - 1), -1).expand(k, *mu_hat.shape), mu_hat / steps
    for _ in range(steps):
        k1 = slope(w)
        k2 = slope(w + step / 2 * k1)
        k3 = slope(w + step / 2 * k2)
        k4 = slope(w + step * k3)
        w = w + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return w.prod(0)


def product(w0: Tensor, mu_hat: Tensor, a: Time, *, scale: float = 1.0, steps: int = 1000) -> Tensor:
    """The decayed product at (mu^, a), (..., n)."""
    return shrinkage(a, k=len(w0), scale=scale) * undecayed(w0, mu_hat, steps=steps)
