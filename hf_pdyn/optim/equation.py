"""The p-update as tensor functions over lists of tensors: of one each, or of many for torch's foreach operations.

Symbols follow *Information allocation dynamics* (IAD) and *On the implicit bias of Adam*:

=============  ==========================================================================
`exp_avg`      m_t, the first moment; `exp_avg_sq` is v_t, the second (IAD Eq. 17)
`v_hat`        v_t / (1 - beta2^t), bias-corrected inside the power; never computed, see `update_scales`
`p`            the preconditioning exponent: 0 is momentum, 1/2 is Adam
`eps`          added to `v_hat` *inside* the power, hence in units of a squared gradient
=============  ==========================================================================

Nothing here knows parameter groups, devices or the Trainer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

SMALLEST_EPS = torch.finfo(torch.float32).tiny

Times = Sequence[float] | Sequence[Tensor]
"""t of each tensor, counted from 1: numbers, or 0-d tensors where a step must read none of them."""


def update_moments(
    exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor], grads: list[Tensor], *, beta1: float, beta2: float
) -> None:
    """Take in gradients, in place: m <- beta1 m + (1-beta1) g and v <- beta2 v + (1-beta2) g^2 (IAD Eq. 17).

    The i-th tensors of the lists have one shape; `grads` may have a lower precision than the moments.
    """
    grads = [grad.to(exp_avg.dtype) for grad, exp_avg in zip(grads, exp_avgs, strict=True)]
    torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
    torch._foreach_mul_(exp_avg_sqs, beta2)
    # Not g^2 first, which overflows float32 from |g| = 1.8e19 on; v does from 1.8e19 / sqrt(1-beta2) on.
    torch._foreach_addcmul_(exp_avg_sqs, torch._foreach_mul(grads, 1 - beta2), grads)


def update_directions(
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    *,
    times: Times,
    beta1: float,
    beta2: float,
    p: float,
    eps: float,
    bias_correction: str = "eq18",
) -> list[Tensor]:
    """m_hat / (v_hat + eps)^p: IAD Eq. 18 without the learning rate, as new tensors.

    Any finite `p` is meant, negative ones too. `bias_correction="padam"` is the update of the published Padam
    implementations, for comparison with their runs: sqrt(1-beta2^t)/(1-beta1^t) * m / (sqrt(v) + sqrt(eps))^(2p).
    It corrects the second moment as if p were 1/2, so for other exponents the first steps have another size than
    Eq. 18's (at p=1/4 and beta2=0.999 the first step is 0.18 of it). Their outside epsilon E is `eps` = E^2 here.
    """
    published = bias_correction == "padam"
    constants = [update_scales(t, beta1=beta1, beta2=beta2, p=0.5 if published else p, eps=eps) for t in times]
    scales: Any = [scale for scale, _ in constants]
    if p == 0:
        return list(torch._foreach_mul(exp_avgs, scales))
    if published:
        gains = list(torch._foreach_sqrt(exp_avg_sqs))
        torch._foreach_add_(gains, usable_eps(eps) ** 0.5)
        _power_(gains, -2 * p)
    else:
        v_eps: Any = [eps_of_v for _, eps_of_v in constants]
        gains = list(torch._foreach_add(exp_avg_sqs, v_eps))
        _power_(gains, -p)
    torch._foreach_mul_(gains, exp_avgs)
    torch._foreach_mul_(gains, scales)
    return gains


def update_scales(t: Any, *, beta1: float, beta2: float, p: float, eps: float) -> tuple[Any, Any]:
    """The constants of m_hat / (v_hat + eps)^p = scale * m / (v + v_eps)^p at step `t`, a number or a 0-d tensor.

    v_hat itself would overflow float32 at gradients sqrt(1-beta2^t) times smaller than those at which v does.
    A float32 `t` must come as float64: 1 - beta2^t has lost five digits when t is small.

    Returns:
        scale = (1-beta2^t)^p / (1-beta1^t), and v_eps = (1-beta2^t) eps.
    """
    of_v = 1 - beta2**t
    try:
        factor = of_v**p
    except OverflowError:  # Python's, for p < -100
        factor = math.inf
    return factor / (1 - beta1**t), usable_eps(eps * of_v)


def power_norm_scale(p: float) -> float:
    """What makes N_p(g), the norm that the p-update penalises or protects, of sum_i (g_i^2 + eps)^(1-p): 1 / (2 (1-p)).

    At p = 1 it is 1/2, of the sum of logarithms.
    """
    return 1 / (2 * (1 - p)) if p != 1 else 0.5


def usable_eps(eps: Any) -> Any:
    """`eps`, but float32's smallest normal number for a positive `eps` below it: 0 / eps^p must not be NaN."""
    if isinstance(eps, Tensor):
        return torch.where(eps > 0, eps.clamp(min=SMALLEST_EPS), eps)
    return max(eps, SMALLEST_EPS) if eps > 0 else eps


def _power_(values: list[Tensor], exponent: float) -> None:
    """In place. sqrt and reciprocal are correctly rounded and several times cheaper than pow."""
    if exponent in (-0.25, -0.5):
        torch._foreach_sqrt_(values)
    if exponent == -0.25:
        torch._foreach_sqrt_(values)
    if exponent in (-0.25, -0.5, -1):
        torch._foreach_reciprocal_(values)
    else:
        torch._foreach_pow_(values, exponent)
