"""Norms of the gradient in the implicit bias of the p-update (*On the implicit bias of Adam*, IBA).

With the whole data set as one batch, step n (counted from 0) of the p-update follows to second order in lr the flow of
E + bias, where for element j

    bias_j = (lr / 2) (C_beta1(n) - 2 p C_beta2(n) g_j^2 / (g_j^2 + eps)) dN_p/dtheta_j
    C_b(n) = (1+b) / (1-b) - 2 (n+1) b^(n+1) / (1 - b^(n+1))

so the sign of the factor decides whether N_p is penalised or protected. For g^2 >> eps it is penalised where
p < p*(n) = C_beta1(n) / (2 C_beta2(n)), and protected above. At betas of 0.9 and 0.999, p* falls from 1/2 at the first
step to 0.0048: from then on Adam (p=1/2) protects it. For g^2 << eps it is penalised at every p. (IBA has p=1/2 and
n = infinity; the rest is ours.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from hf_pdyn.tensors.norms import accumulator_dtype


def perturbed_one_norm(grad: Tensor, *, eps: float) -> Tensor:
    """||g||_{1,eps} = sum_i sqrt(g_i^2 + eps), the norm Adam's implicit bias is about; a 0-d tensor."""
    return _sum(_perturbed_square(grad, eps).sqrt_())


def power_norm(grad: Tensor, *, p: float, eps: float) -> Tensor:
    """N_p(g) = sum_i (g_i^2 + eps)^(1-p) / (2 (1-p)), which the p-update penalises or protects; a 0-d tensor.

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
