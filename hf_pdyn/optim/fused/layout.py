"""What the compiled kernels are told of a group at one step count. Their sums are `step_work.STEP_SUMS`."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, get_args

from torch import Tensor

from hf_pdyn.optim.equation import power_norm_scale, update_scales, usable_eps
from hf_pdyn.optim.hyperparameters import StateDtype
from hf_pdyn.optim.step_work import Update

COLUMNS = (
    "one_minus_beta1",
    "beta2",
    "one_minus_beta2",
    "scale",
    "adam_scale",
    "v_eps",
    "v_hat_scale",
    "power_scale",
    "p",
    "eps",
    "l2",
    "sign",
    "t",
    "lr",
    "weight_decay",
)
"""A kernel's settings for a group at one step count; padam.cpp says what each means."""

FORMATS: tuple[StateDtype, ...] = get_args(StateDtype)
"""What moments are stored in; a kernel knows a format by its place here, which codes.h repeats."""


def addresses_of(update: Update) -> tuple[int, ...]:
    """Where theta, grad, exp_avg, exp_avg_sq, max_exp_avg_sq and weight_correction (0 without) are."""
    maximum, correction = update.max_exp_avg_sq, update.weight_correction
    return (
        update.theta.data_ptr(),
        update.grad.data_ptr(),
        update.exp_avg.data_ptr(),
        update.exp_avg_sq.data_ptr(),
        0 if maximum is None else maximum.data_ptr(),
        0 if correction is None else correction.data_ptr(),
    )


class Table:
    """A row of addresses and numbers for every update, of which the second is where the gradient is."""

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        self._width = len(rows[0]) if rows else 1
        self.values = array("q", chain.from_iterable(rows))

    def follow(self, grads_at: Sequence[int]) -> None:
        """Have the gradients at other addresses."""
        self.fill(1, grads_at)

    def fill(self, column: int, values: Sequence[int]) -> None:
        """Set a column."""
        self.values[column :: self._width] = array("q", values)


@dataclass
class Rows:
    """of_update: each update's row of settings. keys: the group and step count of each row. first: an update of it."""

    of_update: list[int]
    keys: list[tuple[Mapping[str, Any], Any]]
    first: list[int]

    def follow(self, times: Sequence[Any]) -> None:
        """Take the updates' step counts from `times`; those alike have stayed alike."""
        self.keys = [(group, times[i]) for (group, _), i in zip(self.keys, self.first, strict=True)]


def rows_of(updates: Sequence[Update]) -> Rows:
    """One row for every group and step count that occur; step counts on the device need none."""
    numbers: dict[tuple[int, Any], int] = {}
    rows = Rows([], [], [])
    on_device = bool(updates) and isinstance(updates[0].t, Tensor)
    for i, update in enumerate(updates):
        key = id(update.group), None if on_device else update.t
        number = numbers.get(key)
        if number is None:
            number = numbers[key] = len(rows.keys)
            rows.keys.append((update.group, update.t))
            rows.first.append(i)
        rows.of_update.append(number)
    return rows


def row(group: Mapping[str, Any], t: float, lr: float) -> tuple[float, ...]:
    """The values of COLUMNS."""
    (beta1, beta2), p, eps = group["betas"], group["p"], group["eps"]
    weight_decay, decoupled = group["weight_decay"], group["decoupled_weight_decay"]
    scale, v_eps = update_scales(t, beta1=beta1, beta2=beta2, p=p, eps=eps)
    adam_scale, _ = update_scales(t, beta1=beta1, beta2=beta2, p=0.5, eps=eps)
    return (
        1 - beta1,
        beta2,
        1 - beta2,
        scale,
        adam_scale,
        v_eps,
        1 / (1 - beta2**t),
        power_norm_scale(p),
        p,
        usable_eps(eps),
        0.0 if decoupled else weight_decay,
        -1.0 if group["maximize"] else 1.0,
        t,
        lr,
        weight_decay if decoupled else 0.0,
    )
