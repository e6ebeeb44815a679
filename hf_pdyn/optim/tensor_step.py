"""The step as tensor operations: it works on every device and for every dtype, and is what others are compared to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_pdyn.optim import equation
from hf_pdyn.optim.step_work import Task, Update, group_lr
from hf_pdyn.tensors import norms

_PART = 2**20
"""Elements that a CPU's operations work on at a time: temporaries stay in its caches, and the allocator keeps them."""

_Batch = list[Update]
_Note = Callable[[Update, Tensor], None]


def advance(
    updates: Sequence[Update],
    tasks: Task,
    *,
    scale: Tensor | None = None,
    foreach: bool = False,
    note: _Note | None = None,
) -> Tensor | None:
    """Do MOMENTS, DIRECTION and APPLY of `tasks`; with DIRECTION, returns (raw, at p=1/2) of each: (len(updates), 2).

    scale: c_t, which multiplies the update. note: called with each update, or part of one, and what will be subtracted
    for it, without weight decay. foreach: many tensors in one operation, which is faster on an accelerator and needs
    memory for all their temporaries at once.
    """
    squares: dict[int, Tensor] = {}
    for batch, indices in _batches(updates, foreach=foreach):
        if tasks & Task.MOMENTS:
            _take_in_gradients(batch)
        if tasks & Task.DIRECTION:
            for i, of_part in zip(indices, _squares_to_match(batch), strict=True):
                squares[i] = squares[i] + of_part if i in squares else of_part
        if tasks & Task.APPLY:
            _apply(batch, scale, note)
    return torch.stack([squares[i] for i in range(len(updates))]) if squares else None


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
            grad.to(update.exp_avg.dtype).add(update.theta, alpha=group["weight_decay"])
            for grad, update in zip(grads, batch, strict=True)
        ]
    beta1, beta2 = group["betas"]
    exp_avgs, exp_avg_sqs = ([getattr(update, name) for update in batch] for name in ("exp_avg", "exp_avg_sq"))
    equation.update_moments(exp_avgs, exp_avg_sqs, grads, beta1=beta1, beta2=beta2)
    for update in batch:
        if update.max_exp_avg_sq is not None:
            torch.maximum(update.max_exp_avg_sq, update.exp_avg_sq, out=update.max_exp_avg_sq)


def _squares_to_match(batch: _Batch) -> Tensor:
    """The squared L2 norms of each direction and of the one at p=1/2, shape (len(batch), 2)."""
    raw = norms.two_norms(_directions(batch, batch[0].group["p"]))
    adam = raw if batch[0].group["p"] == 0.5 else norms.two_norms(_directions(batch, 0.5))
    return torch.stack([raw, adam], dim=1).square()


def _apply(batch: _Batch, scale: Tensor | None, note: _Note | None) -> None:
    group = batch[0].group
    lr, weight_decay = group_lr(group), group["weight_decay"]
    updates = _directions(batch, group["p"])
    torch._foreach_mul_(updates, lr if scale is None else scale.to(updates[0]) * lr)
    if note is not None:
        for update, value in zip(batch, updates, strict=True):
            note(update, value)
    if weight_decay != 0 and group["decoupled_weight_decay"]:
        thetas = [update.theta.to(value.dtype) for update, value in zip(batch, updates, strict=True)]
        if isinstance(lr, Tensor):
            torch._foreach_add_(updates, torch._foreach_mul(thetas, lr * weight_decay))
        else:
            torch._foreach_add_(updates, thetas, alpha=lr * weight_decay)
    for update, value in zip(batch, updates, strict=True):
        # One rounding for bf16 parameters: update and decay together, in float32.
        update.theta.sub_(value)


def _directions(batch: _Batch, p: float) -> list[Tensor]:
    group = batch[0].group
    beta1, beta2 = group["betas"]
    return equation.update_directions(
        [update.exp_avg for update in batch],
        [update.second_moment for update in batch],
        times=[update.t.double() if isinstance(update.t, Tensor) else update.t for update in batch],
        beta1=beta1,
        beta2=beta2,
        p=p,
        eps=group["eps"],
        bias_correction=group["bias_correction"],
    )
