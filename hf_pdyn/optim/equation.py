"""The p-update and the norms it penalises, as tensor functions.

The update is written over lists of tensors: of one each, or of many for torch's foreach operations.

Symbols follow *Information allocation dynamics* (IAD) and *On the implicit bias of Adam*:

=============  ==========================================================================
`exp_avg`      m_t, the first moment; `exp_avg_sq` is v_t, the second (IAD Eq. 17)
`v_hat`        v_t / (1 - beta2^t), bias-corrected inside the power
`p`            the preconditioning exponent: 0 is momentum, 1/2 is Adam
`eps`          added to `v_hat` *inside* the power, hence in units of a squared gradient
=============  ==========================================================================

Nothing here knows parameter groups, devices or the Trainer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Times = Sequence[float] | Sequence[Tensor]
"""t of each tensor, counted from 1: numbers, or 0-d tensors where a step must read none of them."""


def update_moments(
    exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor], grads: list[Tensor], *, beta1: float, beta2: float
) -> None:
    """M <- beta1 m + (1-beta1) g and v <- beta2 v + (1-beta2) g^2, in place (IAD Eq. 17).

    The i-th tensors of the lists have one shape; `grads` may have a lower precision than the moments.
    """
    grads = [grad.to(exp_avg.dtype) for grad, exp_avg in zip(grads, exp_avgs, strict=True)]
    torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
    torch._foreach_mul_(exp_avg_sqs, beta2)
    torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - beta2)


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
    scales = [bias_corrections(t, beta1=beta1, beta2=beta2, published=published) for t in times]
    m_scales: Any = [m_scale for m_scale, _ in scales]
    v_scales: Any = [v_scale for _, v_scale in scales]
    if p == 0:
        return list(torch._foreach_mul(exp_avgs, m_scales))
    if published:
        gains = list(torch._foreach_sqrt(exp_avg_sqs))
        torch._foreach_add_(gains, eps**0.5)
        torch._foreach_mul_(gains, gains)
    else:
        gains = list(torch._foreach_mul(exp_avg_sqs, v_scales))
        torch._foreach_add_(gains, eps)
    _power_(gains, -p)
    torch._foreach_mul_(gains, exp_avgs)
    torch._foreach_mul_(gains, m_scales)
    return gains


def bias_corrections(t: Any, *, beta1: float, beta2: float, published: bool = False) -> tuple[Any, Any]:
    """What multiplies m and v in m_hat / (v_hat + eps)^p at step `t`, a number or a 0-d tensor.

    A float32 `t` must come as float64: 1 - beta2^t has lost five digits when t is small.
    """
    if published:
        return (1 - beta2**t) ** 0.5 / (1 - beta1**t), 1.0
    return 1 / (1 - beta1**t), 1 / (1 - beta2**t)


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
