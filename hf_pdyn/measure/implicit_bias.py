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
- Adam and AdamW, whose eps stands outside the root, are taken for the p-update with p = 1/2 and eps^2 inside it. In 8
  and 4 bits v is what the optimizer has kept of it: an element whose v is rounded to 0 does not count. SGD is
  p = 0 with the long-run weights of its momentum, so its coefficient is positive and depends on lr and momentum only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from hf_pdyn.integrations import low_bit
from hf_pdyn.measure.moments import step_count
from hf_pdyn.optim import state_format
from hf_pdyn.optim.equation import power_norm_scale, usable_eps
from hf_pdyn.optim.step_work import as_scalar, group_lr
from hf_pdyn.optim.update_list import local_reals
from hf_pdyn.tensors.norms import accumulator_dtype, power_sum, shares_of_eps
from hf_pdyn.tensors.sharding import Piece, group_by_param
from hf_pdyn.theory.modified_flow import bias_coefficient, momentum_coefficient


def perturbed_one_norm(grad: Tensor, *, eps: float) -> Tensor:
    """||g||_{1,eps} = sum_i sqrt(g_i^2 + eps), the norm Adam's implicit bias is about; a 0-d tensor."""
    return power_sum(grad, 0.5, eps=eps)


def power_norm(grad: Tensor, *, p: float, eps: float) -> Tensor:
    """N_p(g) = sum_i (g_i^2 + eps)^(1-p) / (2 (1-p)), which the p-update penalises or protects; a 0-d tensor.

    p=1/2 gives the perturbed one-norm, p=0 half the squared two-norm (plus eps/2 a coordinate). At
    p=1 the sum diverges by a constant only; its gradient is that of sum_i log(g_i^2 + eps) / 2, which
    is what is returned there.
    """
    return power_norm_scale(p) * power_sum(grad, 1 - p, eps=eps)


def exponent(optimizer: Optimizer, group: Mapping[str, Any]) -> tuple[float | None, float]:
    """Return (p, eps) that `optimizer` applies to `group`: its own, or those of the Padam it equals; None if none."""
    if "p" in group:
        return group["p"], usable_eps(group["eps"])
    if isinstance(optimizer, (Adam, AdamW)) or low_bit.is_adam(optimizer):  # their eps stands outside the root
        return 0.5, usable_eps(group["eps"] ** 2)
    return (0.0, 0.0) if isinstance(optimizer, SGD) else (None, 0.0)


def why_no_coefficient(optimizer: Optimizer, group: Mapping[str, Any]) -> str | None:
    """Why the implicit bias of this parameter group has no coefficient; None where it has."""
    name = type(optimizer).__name__
    if exponent(optimizer, group)[0] is None:
        return (
            f"{name} is no p-update: padam, Adam and AdamW of torch, torchao and bitsandbytes (p=1/2) and SGD (p=0) are"
        )
    if group.get("amsgrad"):
        return "the maximum that amsgrad keeps is no average of squared gradients"
    if group.get("bias_correction", "eq18") != "eq18":
        return f"the first steps of bias_correction={group['bias_correction']!r} have a size of their own"
    if group.get("momentum", 0.0) >= 1:
        return f"with momentum={group['momentum']} {name} never forgets a gradient"
    return None


def coefficient_sums(optimizer: Optimizer, pieces: Sequence[Piece], shares: Tensor | None = None) -> Tensor:
    """Sums of each piece's coefficients and of eps / (v_hat + eps) after a step, and the number of its elements.

    Shape (len(pieces), 3). NaN where `why_no_coefficient` has a reason, and before a first step. Elements whose
    gradient has always been zero (rows of an embedding that no token has used) do not count: their part of dN_p is
    zero. Waits for no device.

    Args:
        optimizer: has taken a step.
        pieces: of its parameters, one at least.
        shares: the last two columns for optimizers with a second moment, shape (len(pieces), 2), if the step has summed
            them (`ruled_by_eps` and `moved` of `step_work.SUMS`). None reads v once.
    """
    lines = _lines(optimizer, pieces)
    if shares is None:
        shares = _shares(optimizer, pieces, lines)
    ruled, moved = shares.unbind(1)
    above = torch.where(ruled.isnan(), 0.0, moved - ruled)
    at_0, slope = ([math.nan if line is None else line[i] for line in lines] for i in range(2))
    coefficient = times_each(moved, at_0) + times_each(above, slope)
    scale = getattr(optimizer, "last_scale", None)
    if scale is not None:
        coefficient *= scale.to(coefficient)
    unknown = coefficient.isnan()
    return torch.stack([coefficient, ruled.masked_fill(unknown, math.nan), moved.masked_fill(unknown, math.nan)], dim=1)


class _Line(NamedTuple):
    """The coefficient of an element is at_0 + slope v / (v + v_eps).

    Numbers, or 0-d tensors where a count of steps or a learning rate stands on the device. v_eps: None without v.
    in_codes: as Padam stores v.
    """

    at_0: Any
    slope: Any
    v_eps: Any
    in_codes: bool = False


def _lines(optimizer: Optimizer, pieces: Sequence[Piece]) -> list[_Line | None]:
    """The factor of each piece; None where there is no coefficient."""
    group_of = group_by_param(optimizer)
    numbers: dict[int, list[int]] = {}
    for i, piece in enumerate(pieces):
        numbers.setdefault(id(group_of[piece.holder]), []).append(i)
    lines: list[_Line | None] = [None] * len(pieces)
    for group in optimizer.param_groups:
        own, in_codes = numbers.get(id(group), []), group.get("state_dtype", "fp32") != "fp32"
        if own and why_no_coefficient(optimizer, group) is None:
            found = _lines_of_group(optimizer, group, [pieces[i].holder for i in own])
            if in_codes:
                found = [line and line._replace(in_codes=True) for line in found]
            for i, line in zip(own, found, strict=True):
                lines[i] = line
    return lines


def _lines_of_group(
    optimizer: Optimizer, group: Mapping[str, Any], holders: Sequence[Tensor]
) -> Sequence[_Line | None]:
    if isinstance(optimizer, SGD):
        return [_Line(_of_momentum(group), 0.0, None)] * len(holders)
    states = [optimizer.state.get(holder, {}) for holder in holders]
    stepped = [i for i, state in enumerate(states) if low_bit.has_moment(state, "exp_avg_sq")]
    times = _times([states[i]["step"] for i in stepped]) if stepped else []
    lines: list[_Line | None] = [None] * len(holders)
    if isinstance(times, Tensor):
        values = _line(optimizer, group, times)
        rows = zip(*(value.expand_as(times).unbind() for value in values[:3]), strict=True)
        found: list[_Line | None] = [_Line(*row) for row in rows]
    else:
        of_time = {t: _line(optimizer, group, t) if t >= 1 else None for t in set(times)}
        found = [of_time[t] for t in times]
    for i, line in zip(stepped, found, strict=True):
        lines[i] = line
    return lines


def _line(optimizer: Optimizer, group: Mapping[str, Any], t: Any) -> _Line:
    p, eps = exponent(optimizer, group)
    settings: dict[str, Any] = {"lr": group_lr(group), "betas": group["betas"], "p": p, "steps_done": t - 1}
    at_0 = bias_coefficient(0.0, **settings)
    return _Line(at_0, bias_coefficient(1.0, **settings) - at_0, usable_eps(eps * (1 - group["betas"][1] ** t)))


def _times(steps: Sequence[Any]) -> list[float] | Tensor:
    """Counts of steps as numbers, or in one tensor where they stand on a device that nobody waits for."""
    if isinstance(steps[0], Tensor) and not steps[0].is_cpu:
        return step_count(torch.stack(list(steps)))
    return [float(step_count(step)) for step in steps]


def _shares(optimizer: Optimizer, pieces: Sequence[Piece], lines: Sequence[_Line | None]) -> Tensor:
    """`shares` from the state; for optimizers without v, NaN and the number of elements."""
    device = pieces[0].holder.device
    shares = torch.full((len(pieces), 2), math.nan, device=device, dtype=accumulator_dtype(device))
    known = [(i, line) for i, line in enumerate(lines) if line is not None]
    if not known:
        return shares
    rows = shares.unbind()
    if known[0][1].v_eps is None:
        moved = torch.zeros(len(known), device=device, dtype=shares.dtype).unbind()
        numels = [piece_of.numel() for piece_of in (_elements(pieces[i]) for i, _ in known)]
        torch._foreach_copy_([rows[i][1] for i, _ in known], torch._foreach_add(moved, numels))
        return shares
    held: list[tuple[int, Tensor]] = []
    for i, line in known:
        state = optimizer.state[pieces[i].holder]
        if line.in_codes or not low_bit.in_floats(state, "exp_avg_sq"):  # one after the other: each takes new memory
            v = _decoded(state, pieces[i], in_codes=line.in_codes)
            rows[i].copy_(shares_of_eps([v], [line.v_eps])[0])
        else:
            held.append((i, pieces[i].of(local_reals(state["exp_avg_sq"]))))
    for place in dict.fromkeys(v.device for _, v in held):
        here = [(i, v) for i, v in held if v.device == place]
        sums = shares_of_eps([v for _, v in here], [lines[i].v_eps for i, _ in here])  # type: ignore[union-attr]
        torch._foreach_copy_([rows[i] for i, _ in here], list(sums.to(shares).unbind()))
    return shares


def _elements(piece: Piece) -> Tensor:
    return piece.of(local_reals(piece.holder.detach()))


def _decoded(state: Mapping[str, Any], piece: Piece, *, in_codes: bool) -> Tensor:
    """V of a piece in floats, from a format that has none."""
    if in_codes:
        return state_format.decode_v(piece.of(local_reals(state["exp_avg_sq"])))
    v = low_bit.moment(state, "exp_avg_sq")
    assert v is not None  # `_lines_of_group` has seen it
    return piece.of(local_reals(v))


def _of_momentum(group: Mapping[str, Any]) -> Any:
    """The coefficient of torch's SGD as n -> infinity: its state does not count steps."""
    momentum = group["momentum"]
    lr = group_lr(group) * ((1 - group["dampening"]) / (1 - momentum) if momentum else 1.0)
    return lr / 2 * momentum_coefficient(momentum, nesterov=group["nesterov"])


def times_each(values: Tensor, factors: list[Any]) -> Tensor:
    """The products, element by element; the factors are numbers, or 0-d tensors where they stand on a device."""
    if values.is_cpu and not any(isinstance(factor, Tensor) for factor in factors):
        return values * torch.tensor(factors, dtype=values.dtype, device="cpu")
    # Numbers become arguments of a kernel: a tensor of them would be sent to the device first.
    return torch.stack(torch._foreach_mul(list(values.unbind()), _beside(factors, values)))


def _beside(values: list[Any], like: Tensor) -> list[Any]:
    """Numbers as they are, which become arguments of a kernel; all as tensors if some are."""
    if not any(isinstance(value, Tensor) for value in values):
        return values
    made = {id(value): as_scalar(value, like.device, like.dtype) for value in values}
    return [made[id(value)] for value in values]
