"""The implicit bias of the p-update: norms of the gradient, and the coefficient of the norm that training penalises.

*On the implicit bias of Adam* (Cattaneo, Klusowski and Shigida, arXiv 2309.00079), for any p: with the whole data set
as one batch, step n of the p-update follows to second order in lr the flow of E + bias, where for element j

    bias_j = coefficient_j dN_p/dtheta_j,   coefficient_j = (lr/2) (C_beta1(n) - 2 p C_beta2(n) g_j^2 / (g_j^2 + eps))

with C_b(n) from `theory.modified_flow`. N_p is penalised where the coefficient is positive and protected where it is
negative. `coefficient_sums` takes it from an optimizer's state, with v_hat for g^2 and lr c_t for lr where updates are
matched in scale. What it is worth:

- An element's coefficient is exact, to that order, for full batches and a learning rate that changes little within
  1 / (1-beta2) steps: v_hat and g^2 then differ by O(lr), which is of the next order.
- The mean over elements is exact where all have v_hat >> eps, or all v_hat << eps. In between, the change of N_p
  weighs each element by (dN_p/dtheta_j)^2, which only Hessian-vector products give; the mean weighs all alike.
- In mini-batches it protects too much. A batch's noise enters v_hat, but weakens how g and v_hat change together along
  the path. In a network of 57 parameters, the part 2 p C_beta2 S is 1.1 times too large where 11 % of v_hat is noise,
  and 1.4 times where 61 % is (`tests/measure/test_implicit_bias.py`). Near a change of sign, trust full batches only.
- Gradient clipping counts as a constant factor of the loss: v_hat and N_p are then of clipped gradients, while
  `pdyn/N_p` is of those before clipping. A gradient scaler leaves no trace in the moments, and skipped steps do not
  count in n.
- Decoupled weight decay adds terms of its own to the flow, and leaves this one. Decay that goes through the gradient is
  part of E.
- Adam and AdamW, whose eps stands outside the root, are taken for the p-update with p = 1/2 and eps^2 inside it. SGD is
  p = 0 with the long-run weights of its momentum, so its coefficient is positive and depends on lr and momentum only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from hf_pdyn.measure.moments import step_count
from hf_pdyn.optim.equation import usable_eps
from hf_pdyn.optim.step_work import group_lr
from hf_pdyn.optim.update_list import local_reals
from hf_pdyn.tensors.norms import accumulator_dtype
from hf_pdyn.tensors.sharding import Piece
from hf_pdyn.theory.modified_flow import bias_coefficient, momentum_coefficient

_PART, _PART_ON_DEVICE = 2**16, 2**24
"""Elements of v that are read at a time: temporaries have this size, not the model's; a CPU's stay in its caches."""


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


def exponent(optimizer: Optimizer, group: Mapping[str, Any]) -> tuple[float | None, float]:
    """Return (p, eps) that `optimizer` applies to `group`: its own, or those of the Padam it equals; None if none."""
    if "p" in group:
        return group["p"], usable_eps(group["eps"])
    if isinstance(optimizer, (Adam, AdamW)):  # their eps stands outside the root
        return 0.5, usable_eps(group["eps"] ** 2)
    return (0.0, 0.0) if isinstance(optimizer, SGD) else (None, 0.0)


def why_no_coefficient(optimizer: Optimizer, group: Mapping[str, Any]) -> str | None:
    """Why the implicit bias of this parameter group has no coefficient; None where it has."""
    name = type(optimizer).__name__
    if exponent(optimizer, group)[0] is None:
        return f"{name} is no p-update: padam, torch's Adam and AdamW (p=1/2) and SGD (p=0) are"
    if group.get("amsgrad"):
        return "the maximum that amsgrad keeps is no average of squared gradients"
    if group.get("bias_correction", "eq18") != "eq18":
        return f"the first steps of bias_correction={group['bias_correction']!r} have a size of their own"
    if group.get("momentum", 0.0) >= 1:
        return f"with momentum={group['momentum']} {name} never forgets a gradient"
    return None


def coefficient_sums(optimizer: Optimizer, pieces: Sequence[Piece]) -> Tensor:
    """Of each piece after a step: sums of its elements' coefficients and of eps / (v_hat + eps), and their number.

    Shape (len(pieces), 3). NaN where `why_no_coefficient` has a reason, and before a first step. Elements whose
    gradient has always been zero (rows of an embedding that no token has used) do not count: their part of dN_p is
    zero. Reads v once and waits for no device.
    """
    groups = {param: group for group in optimizer.param_groups for param in group["params"]}
    reasons = {id(group): why_no_coefficient(optimizer, group) for group in optimizer.param_groups}
    rows = []
    for piece in pieces:
        group, device = groups[piece.holder], piece.holder.device
        sums = _sums(optimizer, group, piece) if reasons[id(group)] is None else None
        rows.append(
            torch.full((3,), math.nan, device=device, dtype=accumulator_dtype(device)) if sums is None else sums
        )
    return torch.stack([row.to(rows[0]) for row in rows])


def _sums(optimizer: Optimizer, group: Mapping[str, Any], piece: Piece) -> Tensor | None:
    if isinstance(optimizer, SGD):
        held = piece.of(local_reals(piece.holder.detach()))
        moved = torch.full((), held.numel(), device=held.device, dtype=accumulator_dtype(held.device))
        return torch.stack([_of_momentum(group) * moved, torch.full_like(moved, math.nan), moved])
    state = optimizer.state.get(piece.holder, {})
    t = step_count(state.get("step", 0))
    if "exp_avg_sq" not in state or (not isinstance(t, Tensor) and t < 1):
        return None
    (p, eps), betas, lr = exponent(optimizer, group), group["betas"], group_lr(group)
    assert p is not None
    v = piece.of(local_reals(state["exp_avg_sq"]))
    ruled, moved = _ruled_by_eps(v, usable_eps(eps * (1 - betas[1] ** t)) if eps else None)
    scale = getattr(optimizer, "last_scale", None)
    if scale is not None:
        lr = scale.to(v.device) * lr
    coefficient = bias_coefficient(1 - ruled / moved, lr=lr, betas=betas, p=p, steps_done=t - 1)
    return torch.stack([torch.where(moved > 0, coefficient * moved, 0.0), ruled, moved])


def _of_momentum(group: Mapping[str, Any]) -> Any:
    """The coefficient of torch's SGD as n -> infinity: its state does not count steps."""
    momentum = group["momentum"]
    lr = group_lr(group) * ((1 - group["dampening"]) / (1 - momentum) if momentum else 1.0)
    return lr / 2 * momentum_coefficient(momentum, nesterov=group["nesterov"])


def _ruled_by_eps(v: Tensor, v_eps: Any) -> Tensor:
    """Sum v_eps / (v + v_eps) over the v that are not 0 (v_eps None for 0), and count these; shape (2,)."""
    sums = torch.zeros(2, device=v.device, dtype=accumulator_dtype(v.device))
    for part in torch.split(v.reshape(-1), _PART if v.is_cpu else _PART_ON_DEVICE):
        part = part.to(torch.promote_types(part.dtype, torch.float32))
        moved = torch.count_nonzero(part).to(sums)
        # Not 1 - v / (v + v_eps), which has lost all digits where eps hardly counts.
        ruled = torch.zeros_like(moved) if v_eps is None else torch.where(part > 0, v_eps / (part + v_eps), 0.0)
        sums += torch.stack([ruled.sum(dtype=sums.dtype), moved])
    return sums
