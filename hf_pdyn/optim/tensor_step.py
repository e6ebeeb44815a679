"""The step as tensor operations: it works on every device and for every dtype, and is what others are compared to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_pdyn.optim import equation, state_format, weight_correction
from hf_pdyn.optim.step_work import STEP_SUMS, Task, Update, group_lr
from hf_pdyn.tensors import norms

_PART = 2**20
"""Elements that a CPU's operations work on at a time: temporaries stay in its caches, and the allocator keeps them."""

_Batch = list[Update]


def advance(
    updates: Sequence[Update],
    tasks: Task,
    *,
    scale: Tensor | None = None,
    clip_factor: Tensor | None = None,
    skip: Tensor | None = None,
    foreach: bool | None = None,
) -> Tensor:
    """An `Advance`.

    foreach: many tensors in one operation, which is faster on an accelerator and needs memory for all their
    temporaries at once; None has it so on CUDA devices.
    """
    device = updates[0].theta.device
    rows: list[Tensor] = [torch.empty(0)] * len(updates)
    for batch, indices in _batches(updates, foreach=device.type == "cuda" if foreach is None else foreach):
        kept = [] if skip is None else [(moving, moving.clone()) for moving in _moving(batch, tasks)]
        if tasks & Task.MOMENTS:
            _take_in_gradients(batch)
        if tasks & Task.APPLY:
            _apply(batch, scale)
        for moved, before in kept:
            assert skip is not None
            moved.copy_(torch.where(skip.to(moved.device) == 0, moved, before))
        if tasks & ~(Task.MOMENTS | Task.APPLY):
            for i, row in zip(indices, _sums(batch, tasks, scale, clip_factor), strict=True):
                rows[i] = rows[i] + row if rows[i].numel() else row
    if tasks & ~(Task.MOMENTS | Task.APPLY):
        return torch.stack(rows)
    return torch.zeros(len(updates), len(STEP_SUMS), device=device, dtype=norms.accumulator_dtype(device))


def _moving(batch: _Batch, tasks: Task) -> Iterator[Tensor]:
    """What `tasks` write to."""
    for update in batch:
        moments = (update.exp_avg, update.exp_avg_sq, update.max_exp_avg_sq) if tasks & Task.MOMENTS else ()
        yield from (moment for moment in moments if moment is not None)
        if tasks & Task.APPLY:
            yield update.theta
            if update.weight_correction is not None:
                yield update.weight_correction


def _sums(batch: _Batch, tasks: Task, scale: Tensor | None, clip_factor: Tensor | None) -> Tensor:
    """The columns of STEP_SUMS that `tasks` ask for, of updates that have taken place; shape (len(batch), columns)."""
    group = batch[0].group
    columns: dict[str, Tensor] = {}
    if tasks & Task.GRADIENT:
        columns["grad_sq"] = norms.two_norms([update.grad for update in batch]).square()
    if tasks & (Task.DIRECTION | Task.PARAMETER):
        direction_sq = norms.two_norms(_directions(batch, group["p"])).square()
    if tasks & Task.DIRECTION:
        columns["direction_sq"] = direction_sq
        columns["adam_sq"] = direction_sq if group["p"] == 0.5 else norms.two_norms(_directions(batch, 0.5)).square()
    if tasks & Task.PARAMETER:
        rate = group_lr(group) if scale is None else scale.to(direction_sq) * group_lr(group)
        columns["update_sq"] = direction_sq * rate * rate
        columns["param_sq"] = norms.two_norms([update.theta for update in batch]).square()
    if tasks & Task.MEASURE:
        columns |= {name: torch.stack(values) for name, values in _measured(batch, clip_factor).items()}
    some = next(iter(columns.values()))
    return torch.stack([columns[name] if name in columns else torch.zeros_like(some) for name in STEP_SUMS], dim=1)


def _measured(batch: _Batch, clip_factor: Tensor | None) -> dict[str, list[Tensor]]:
    group, dtype = batch[0].group, norms.accumulator_dtype(batch[0].theta.device)
    p, eps, beta2 = group["p"], equation.usable_eps(group["eps"]), group["betas"][1]
    grads = [
        update.grad if clip_factor is None else update.grad.to(_moment_type(update)) / clip_factor for update in batch
    ]
    one_norms = [norms.power_sum(grad, 0.5, eps=eps) for grad in grads]
    return {
        "v_hat_sum": [
            state_format.decode_v(update.second_moment).sum(dtype=dtype) / (1 - beta2 ** _time(update))
            for update in batch
        ],
        "one_norm": one_norms,
        "N_p": one_norms
        if p == 0.5
        else [equation.power_norm_scale(p) * norms.power_sum(grad, 1 - p, eps=eps) for grad in grads],
        "numel": [
            torch.full_like(one_norm, update.theta.numel()) for one_norm, update in zip(one_norms, batch, strict=True)
        ],
        **_ruled_by_eps(batch),
    }


def _ruled_by_eps(batch: _Batch) -> dict[str, list[Tensor]]:
    group = batch[0].group
    constants = {"beta1": group["betas"][0], "beta2": group["betas"][1], "p": group["p"], "eps": group["eps"]}
    v_eps = [equation.update_scales(_time(update), **constants)[1] for update in batch]
    sums = norms.shares_of_eps([state_format.decode_v(update.second_moment) for update in batch], v_eps)
    return dict(zip(("ruled_by_eps", "moved"), map(list, sums.unbind(1)), strict=True))


def _batches(updates: Sequence[Update], *, foreach: bool) -> Iterator[tuple[_Batch, list[int]]]:
    """Lists that one call of a tensor function can take, and the numbers of the updates that they are parts of."""
    if not foreach:
        for i, update in enumerate(updates):
            yield from (([part], [i]) for part in update.parts(_PART if update.theta.is_cpu else None))
        return
    alike: dict[Any, tuple[_Batch, list[int]]] = {}
    for i, update in enumerate(updates):
        key = (id(update.group), update.theta.dtype, update.max_exp_avg_sq is None)
        batch, indices = alike.setdefault(key, ([], []))
        batch.append(update)
        indices.append(i)
    yield from alike.values()


def _take_in_gradients(batch: _Batch) -> None:
    group = batch[0].group
    grads = [-update.grad if group["maximize"] else update.grad for update in batch]
    if group["weight_decay"] != 0 and not group["decoupled_weight_decay"]:
        grads = [
            grad.to(_moment_type(update)).add(_exact_theta(update), alpha=group["weight_decay"])
            for grad, update in zip(grads, batch, strict=True)
        ]
    beta1, beta2 = group["betas"]
    moments = [state_format.decode(update.exp_avg, update.exp_avg_sq) for update in batch]
    exp_avgs, exp_avg_sqs = (list(values) for values in zip(*moments, strict=True))
    equation.update_moments(exp_avgs, exp_avg_sqs, grads, beta1=beta1, beta2=beta2)
    for update, m, v in zip(batch, exp_avgs, exp_avg_sqs, strict=True):
        if m is not update.exp_avg:
            into = update.exp_avg, update.exp_avg_sq
            state_format.store(m, v, into, step=update.t, number=update.number, start=update.start)
            if update.max_exp_avg_sq is not None:
                state_format.keep_larger(update.max_exp_avg_sq, update.exp_avg_sq)
        elif update.max_exp_avg_sq is not None:
            torch.maximum(update.max_exp_avg_sq, update.exp_avg_sq, out=update.max_exp_avg_sq)


def _apply(batch: _Batch, scale: Tensor | None) -> None:
    group = batch[0].group
    lr, weight_decay = group_lr(group), group["weight_decay"]
    updates = _directions(batch, group["p"])
    torch._foreach_mul_(updates, lr if scale is None else scale.to(updates[0]) * lr)
    if weight_decay != 0 and group["decoupled_weight_decay"]:
        thetas = [_exact_theta(update).to(value.dtype) for update, value in zip(batch, updates, strict=True)]
        if isinstance(lr, Tensor):
            torch._foreach_add_(updates, torch._foreach_mul(thetas, lr * weight_decay))
        else:
            torch._foreach_add_(updates, thetas, alpha=lr * weight_decay)
    for update, value in zip(batch, updates, strict=True):
        # One rounding for bf16 parameters: update and decay together, in float32.
        if update.weight_correction is None:
            update.theta.sub_(value)
        else:
            weight_correction.split(_exact_theta(update).sub_(value), update.theta, update.weight_correction)


def _exact_theta(update: Update) -> Tensor:
    """The parameter, or with its correction a new float32 tensor."""
    correction = update.weight_correction
    return update.theta if correction is None else weight_correction.joined(update.theta, correction)


def _directions(batch: _Batch, p: float) -> list[Tensor]:
    group = batch[0].group
    beta1, beta2 = group["betas"]
    return equation.update_directions(
        [state_format.decode(update.exp_avg, update.exp_avg_sq)[0] for update in batch],
        [state_format.decode_v(update.second_moment) for update in batch],
        times=[_time(update) for update in batch],
        beta1=beta1,
        beta2=beta2,
        p=p,
        eps=group["eps"],
        bias_correction=group["bias_correction"],
    )


def _moment_type(update: Update) -> torch.dtype:
    return torch.promote_types(update.theta.dtype, torch.float32)


def _time(update: Update) -> Any:
    return update.t.double() if isinstance(update.t, Tensor) else update.t
