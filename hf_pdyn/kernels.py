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

import math
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


def perturbed_one_norm(grad: Tensor, *, eps: float) -> Tensor:
    """||g||_{1,eps} = sum_i sqrt(g_i^2 + eps), the norm Adam's implicit bias is about; a 0-d tensor."""
    return _sum(_perturbed_square(grad, eps).sqrt_())


def penalised_norm(grad: Tensor, *, p: float, eps: float) -> Tensor:
    """N_p(g) = sum_i (g_i^2 + eps)^(1-p) / (2 (1-p)), what the p-update's modified flow penalises; 0-d.

    p=1/2 gives the perturbed one-norm, p=0 half the squared two-norm (plus eps/2 a coordinate). At
    p=1 the sum diverges by a constant only; its gradient is that of sum_i log(g_i^2 + eps) / 2, which
    is what is returned there.
    """
    perturbed = _perturbed_square(grad, eps)
    if p == 1:
        return _sum(perturbed.log_()) / 2
    return _sum(perturbed.pow_(1 - p)) / (2 * (1 - p))


def two_norms(tensors: Sequence[Tensor]) -> Tensor:
    """The L2 norm of each tensor: shape (len(tensors),), in `accumulator_dtype`, on the first one's device.

    torch's float32 `vector_norm` adds naively on CPUs (2.13: up to 0.8 % off at 10^7 elements); norms
    of short rows combined in float64 are exact to 3e-7 and no slower.
    """
    device = tensors[0].device
    dtype = accumulator_dtype(device)
    norms: list[Tensor] = [None] * len(tensors)  # type: ignore[list-item]  # each is set below
    short = [i for i, tensor in enumerate(tensors) if tensor.numel() <= _SHORT]
    for i, norm in zip(short, _foreach_norm([tensors[i] for i in short]), strict=True):
        norms[i] = norm
    for i, tensor in enumerate(tensors):
        if norms[i] is None:
            norms[i] = _norm_by_rows(tensor, dtype)
    return torch.stack([norm.to(device=device, dtype=dtype) for norm in norms])


def holds_nonfinite(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """1.0 where any tensor holds NaN or infinity, else 0.0; a 0-d tensor on `device`.

    By the largest magnitude of each: unlike a sum of squares it cannot overflow where every element is finite.
    """
    alike: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        if tensor.numel():  # an empty tensor has no largest element
            alike.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    finite = [torch.stack(torch._foreach_norm(same, math.inf)).isfinite().all().to(device) for same in alike.values()]
    return (~torch.stack(finite).all()).float() if finite else torch.zeros((), device=device)


_ROW = 512
_SHORT = 8 * _ROW


def _foreach_norm(tensors: list[Tensor]) -> Sequence[Tensor]:
    if not tensors:
        return []
    if len({(t.dtype, t.device) for t in tensors}) > 1:
        return [torch.linalg.vector_norm(t, dtype=_norm_dtype(t)) for t in tensors]
    return torch._foreach_norm(tensors, 2, dtype=_norm_dtype(tensors[0]))


def _norm_by_rows(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    flat = tensor.reshape(-1)
    whole = flat.numel() // _ROW * _ROW
    rows = torch.linalg.vector_norm(flat[:whole].view(-1, _ROW), dim=1, dtype=_norm_dtype(tensor))
    rest = torch.linalg.vector_norm(flat[whole:], dtype=_norm_dtype(tensor))
    return torch.linalg.vector_norm(torch.cat([rows.to(dtype), rest.to(dtype).view(1)]))


def _norm_dtype(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _perturbed_square(grad: Tensor, eps: float) -> Tensor:
    if grad.is_complex():
        grad = torch.view_as_real(grad)
    # float32 at least: the square of a bf16 or fp16 gradient loses most of its range.
    return grad.to(torch.promote_types(grad.dtype, torch.float32)).square().add_(eps)


def _sum(values: Tensor) -> Tensor:
    return values.sum(dtype=accumulator_dtype(values.device))


def accumulator_dtype(device: torch.device) -> torch.dtype:
    """float64, in which sums over 10^8 elements lose no digits, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64
