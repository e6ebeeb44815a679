"""What a measured step sums over each piece of a parameter, for optimizers that do not sum it in passing as Padam does.

Small pieces share their operations: to take each alone costs more than the step of a model with many tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hf_pdyn.integrations import low_bit
from hf_pdyn.measure import implicit_bias
from hf_pdyn.measure.moments import step_count
from hf_pdyn.optim import state_format
from hf_pdyn.optim.equation import power_norm_scale
from hf_pdyn.optim.step_work import SUMS
from hf_pdyn.optim.update_list import local_reals
from hf_pdyn.tensors import norms
from hf_pdyn.tensors.sharding import Piece, group_by_param, local, local_like

_COLUMNS = SUMS[:-2]
_ON_CPU, _ON_DEVICE = 2**16, 2**24
"""Elements that share operations: temporaries have this size, or that of one piece."""


def gradient_squares(pieces: Sequence[Piece]) -> Tensor:
    """The squared norm of each piece's gradient, shape (len(pieces),)."""
    return norms.two_norms([_gradient(piece) for piece in pieces]).square()


def has_gradient(piece: Piece) -> bool:
    """Whether a piece has a gradient of which sums can be taken."""
    return piece.holder.grad is not None and not piece.holder.grad.is_sparse


def measured_sums(
    optimizer: Optimizer, pieces: Sequence[Piece], before: Mapping[Tensor, Tensor], clip_factor: Tensor | None
) -> Tensor:
    """The columns of SUMS for each piece but those of the coefficient, shape (len(pieces), len(SUMS) - 2).

    NaN where this optimizer has no such quantity.

    Args:
        optimizer: has taken a step.
        pieces: with gradients, one at least.
        before: by holder, a copy of what this process held of it before the step, which is overwritten; empty where
            nobody copied.
        clip_factor: by which clipping multiplied the gradients; None where nothing clips.
    """
    grad_sq = gradient_squares(pieces)
    after = {piece.holder: local(piece.holder.detach()) for piece in pieces}
    groups = group_by_param(optimizer)
    missing = torch.full((), math.nan, device=grad_sq.device, dtype=grad_sq.dtype)
    columns = {
        "grad_sq": grad_sq,
        "update_sq": missing,
        "param_sq": norms.two_norms([piece.of(after[piece.holder]) for piece in pieces]).square(),
        "numel": _numbers([_numel(piece) for piece in pieces], grad_sq),
    }
    if all(piece.holder in before for piece in pieces):
        torch._foreach_sub_([before[holder] for holder in after], list(after.values()))
        columns["update_sq"] = norms.two_norms([piece.of(before[piece.holder]) for piece in pieces]).square()
    rows: list[Tensor] = [missing] * len(pieces)
    for group, batch in _batches(pieces, groups):
        own = [pieces[i] for i in batch]
        for i, row in zip(batch, _of_gradients(optimizer, group, own, clip_factor).to(grad_sq).unbind(), strict=True):
            rows[i] = row
    columns["one_norm"], columns["N_p"] = torch.stack(rows).unbind(1)
    columns["v_hat_sum"] = _v_hat_sums(optimizer, groups, pieces, grad_sq)
    return torch.stack([columns[name].expand_as(grad_sq) for name in _COLUMNS], dim=1)


def _batches(
    pieces: Sequence[Piece], groups: Mapping[Tensor, Mapping[str, Any]]
) -> Iterator[tuple[Mapping[str, Any], list[int]]]:
    """Numbers of pieces of one group, dtype and device, of so many elements together at most, or one alone."""
    open_batches: dict[tuple[Any, ...], tuple[list[int], int]] = {}
    group_of: dict[int, Mapping[str, Any]] = {}
    for i, piece in enumerate(pieces):
        group, grad = groups[piece.holder], _gradient(piece)
        group_of[id(group)] = group
        key = id(group), grad.dtype, grad.device
        batch, size = open_batches.get(key, ([], 0))
        if batch and size + grad.numel() > (_ON_CPU if grad.is_cpu else _ON_DEVICE):
            yield group, batch
            batch, size = [], 0
        batch.append(i)
        open_batches[key] = batch, size + grad.numel()
    for key, (batch, _) in open_batches.items():
        yield group_of[key[0]], batch


def _of_gradients(
    optimizer: Optimizer, group: Mapping[str, Any], pieces: Sequence[Piece], clip_factor: Tensor | None
) -> Tensor:
    """one_norm and N_p of pieces of one group, dtype and device, of the gradient before clipping; a row each."""
    p, eps = implicit_bias.exponent(optimizer, group)
    grads = [torch.view_as_real(grad) if grad.is_complex() else grad for grad in map(_gradient, pieces)]
    sizes = [grad.numel() for grad in grads]
    flat = grads[0].reshape(-1) if len(grads) == 1 else torch.cat([grad.reshape(-1) for grad in grads])
    if clip_factor is not None:
        flat = flat / clip_factor.to(device=flat.device, dtype=flat.dtype)
    ones = norms.sums_of_parts(norms.perturbed_square(flat, eps).sqrt_(), sizes)
    if p is None:
        return torch.stack([ones, torch.full_like(ones, math.nan)], dim=1)
    perturbed = norms.perturbed_square(flat, eps)
    powers = perturbed.log_() if p == 1 else perturbed.pow_(1 - p)
    return torch.stack([ones, power_norm_scale(p) * norms.sums_of_parts(powers, sizes, signed=p == 1)], dim=1)


def _v_hat_sums(
    optimizer: Optimizer, groups: Mapping[Tensor, Mapping[str, Any]], pieces: Sequence[Piece], like: Tensor
) -> Tensor:
    """Sums of the bias-corrected second moment over each piece; NaN where there is none that can be read."""
    plain: dict[int, Tensor] = {}
    factors: dict[int, Any] = {}
    sums = list(torch.full_like(like, math.nan).unbind())
    for i, piece in enumerate(pieces):
        found = _second_moment(optimizer.state.get(piece.holder, {}), groups[piece.holder], piece)
        if found is None:
            continue
        held, factors[i], is_new = found
        if is_new:  # one after the other, or all would be there at once
            sums[i] = held.sum(dtype=like.dtype).to(like.device)
        else:
            plain[i] = held
    if plain:
        for i, value in zip(plain, norms.sums_of(list(plain.values())).to(like.device).unbind(), strict=True):
            sums[i] = value
    stacked = torch.stack(sums)
    return implicit_bias.times_each(stacked, [factors.get(i, math.nan) for i in range(len(pieces))])


def _second_moment(state: Mapping[str, Any], group: Mapping[str, Any], piece: Piece) -> tuple[Tensor, Any, bool] | None:
    """V of a piece from an Adam-like optimizer's state, the factor that makes it v_hat, and whether v is a new tensor.

    None for optimizers without.
    """
    name = "max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"
    in_codes = group.get("state_dtype", "fp32") != "fp32"  # of Padam
    try:
        v = state.get(name) if in_codes else low_bit.moment(state, name)
    except ValueError:  # in a format that nobody knows
        return None
    if v is None or "betas" not in group or "step" not in state:
        return None
    held = piece.of(local_reals(v))
    if in_codes:
        held = state_format.decode_v(held)
    of_v = 1 - group["betas"][1] ** step_count(state["step"])
    # A fused optimizer that skipped its first step on the device has made none.
    factor = 1 / of_v if isinstance(of_v, Tensor) or of_v else math.nan
    return held, factor, in_codes or not low_bit.in_floats(state, name)


def _numel(piece: Piece) -> int:
    grad = _gradient(piece)
    return grad.numel() * (2 if grad.is_complex() else 1)


def _numbers(values: Sequence[int], like: Tensor) -> Tensor:
    if like.is_cpu:
        return torch.tensor(values, dtype=like.dtype, device="cpu")
    # Arguments of a kernel: a tensor of them would be sent to the device first.
    zeros = torch.zeros(len(values), device=like.device, dtype=like.dtype).unbind()
    return torch.stack(torch._foreach_add(zeros, list(map(float, values))))


def _gradient(piece: Piece) -> Tensor:
    assert piece.holder.grad is not None
    return piece.of(local_like(piece.holder.grad, piece.holder))
