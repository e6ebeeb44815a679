"""The tables that the compiled kernels read and fill: their columns, and how groups and sums are converted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_pdyn.optim.equation import update_scales, usable_eps
from hf_pdyn.optim.step_work import SUMS, Update, as_scalar, group_lr

COLUMNS = (
    "one_minus_beta1",
    "beta2",
    "one_minus_beta2",
    "scale",
    "adam_scale",
    "v_eps",
    "p",
    "eps",
    "lr",
    "weight_decay",
    "l2",
    "sign",
)
"""What `row` gives; padam.cpp says what each means, but for lr and weight_decay, which a kernel multiplies."""

KERNEL_SUMS = ("grad_sq", "direction_sq", "adam_sq", "param_sq", "v_sum", "one_norm", "power_sum")
"""Columns of what the kernels sum: of Eq. 18's direction, not of the update, and without constant factors."""


def rows_of(
    updates: Sequence[Update], row_of: Callable[[Mapping[str, Any], Any], tuple[float, ...]]
) -> tuple[list[int], list[tuple[float, ...]]]:
    """Each update's row of settings, and the rows: one for every group and step count that occur."""
    numbers: dict[tuple[int, Any], int] = {}
    rows: list[tuple[float, ...]] = []
    of_update: list[int] = []
    on_device = bool(updates) and isinstance(updates[0].t, Tensor)
    for update in updates:
        key = id(update.group), None if on_device else update.t
        number = numbers.get(key)
        if number is None:
            number = numbers[key] = len(rows)
            rows.append(row_of(update.group, update.t))
        of_update.append(number)
    return of_update, rows


def row(group: Mapping[str, Any], t: float, lr: float) -> tuple[float, ...]:
    """The values of COLUMNS."""
    beta1, beta2 = group["betas"]
    decay, decoupled = group["weight_decay"], group["decoupled_weight_decay"]
    scale, v_eps = update_scales(t, beta1=beta1, beta2=beta2, p=group["p"], eps=group["eps"])
    adam_scale, _ = update_scales(t, beta1=beta1, beta2=beta2, p=0.5, eps=group["eps"])
    return (
        1 - beta1,
        beta2,
        1 - beta2,
        scale,
        adam_scale,
        v_eps,
        group["p"],
        usable_eps(group["eps"]),
        lr,
        decay if decoupled else 0.0,
        0.0 if decoupled else decay,
        -1.0 if group["maximize"] else 1.0,
    )


def squares(sums: Tensor) -> Tensor:
    """Of each direction and of the one at p=1/2, shape (n, 2)."""
    return sums[:, KERNEL_SUMS.index("direction_sq") : KERNEL_SUMS.index("adam_sq") + 1]


def step_sums(updates: Sequence[Update], sums: Tensor, scale: Tensor | None, *, measured: bool) -> Tensor:
    """The columns of `updates.SUMS`, shape (n, len(SUMS)), from those of KERNEL_SUMS; without reading any.

    The first alone unless `measured`.
    """
    if not measured:
        return sums[:, :1]
    column = dict(zip(KERNEL_SUMS, sums.unbind(dim=1), strict=True))
    rates = [group_lr(update.group) for update in updates]
    column["update_sq"] = _times(_times(column["direction_sq"], rates), rates)
    if scale is not None:
        column["update_sq"] = column["update_sq"] * scale.to(column["update_sq"]).square()
    corrections = [1 / (1 - update.group["betas"][1] ** _time(update)) for update in updates]
    column["v_hat_sum"] = _times(column["v_sum"], corrections)
    exponents = [update.group["p"] for update in updates]
    column["N_p"] = _times(column["power_sum"], [1 / (2 * (1 - p)) if p != 1 else 0.5 for p in exponents])
    column["numel"] = _times(torch.ones_like(column["v_sum"]), [float(update.theta.numel()) for update in updates])
    return torch.stack([column[name] for name in SUMS], dim=1)


def _time(update: Update) -> Any:
    return update.t.double() if isinstance(update.t, Tensor) else update.t


def _times(values: Tensor, factors: Sequence[Any]) -> Tensor:
    """Element by element; numbers are arguments of a kernel, since a tensor of them would be sent to the device."""
    if any(isinstance(factor, Tensor) for factor in factors):
        return values * torch.stack([as_scalar(factor, values.device, values.dtype) for factor in factors])
    return torch.stack(torch._foreach_mul(list(values), factors))
