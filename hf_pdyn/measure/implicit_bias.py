"""Norms of the gradient that the p-update's modified flow is about (*On the implicit bias of Adam*, IBA)."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_pdyn.tensors.norms import accumulator_dtype


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


def _perturbed_square(grad: Tensor, eps: float) -> Tensor:
    if grad.is_complex():
        grad = torch.view_as_real(grad)
    # float32 at least: the square of a bf16 or fp16 gradient loses most of its range.
    return grad.to(torch.promote_types(grad.dtype, torch.float32)).square().add_(eps)


def _sum(values: Tensor) -> Tensor:
    return values.sum(dtype=accumulator_dtype(values.device))
