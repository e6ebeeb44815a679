"""a_t, the time variable of *time-dependent mirror flows* (TMF), of the mirror map h = ||theta||^2 / 2.

Weight decay that is coupled becomes part of the gradient, and what it adds to a_t depends on what the optimizer does
with a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, optim
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

Group = Mapping[str, Any]

_ADAPTIVE = (
    optim.Adam,
    optim.Adamax,
    optim.NAdam,
    optim.RAdam,
    optim.Adagrad,
    optim.Adadelta,
    optim.RMSprop,
    optim.Rprop,
)
"""torch's optimizers that add weight decay to the gradient, then divide; AdamW is an Adam in newer versions."""


def time_of_step(optimizer: Optimizer, group: Group) -> float | Tensor:
    """How much one step of this parameter group lowers a_t; NaN where `why_no_time` has a reason.

    It is lr * weight_decay where decay is decoupled, as in optimizers that torch does not have. torch's SGD adds decay
    to the gradient. Its momentum buffer takes in (1 - dampening) of that and applies it again at every later step, so
    the sum is (1 - dampening) / (1 - momentum) times lr * weight_decay, with Nesterov's momentum too. This holds where
    lr and weight_decay change little within 1 / (1 - momentum) steps, to a relative error of
    lr * weight_decay / (1 - momentum)^2.
    """
    weight_decay = group.get("weight_decay", 0.0)
    if why_no_time(optimizer, group) is not None:
        return math.nan
    if isinstance(optimizer, optim.SGD):
        weight_decay *= (1 - group["dampening"]) / (1 - group["momentum"]) if group["momentum"] else 1.0
    return group["lr"] * weight_decay


def why_no_time(optimizer: Optimizer, group: Group) -> str | None:
    """Why a_t has no meaning after a step of this parameter group; None where it has."""
    name = type(optimizer).__name__
    if group["lr"] is None:
        return f"{name} finds its own learning rate"
    if not group.get("weight_decay", 0.0):
        return None
    if isinstance(optimizer, optim.SGD) and group["momentum"] >= 1:
        return f"with momentum={group['momentum']} {name} never forgets weight decay"
    decoupled = group.get(
        "decoupled_weight_decay", isinstance(optimizer, optim.AdamW) or not isinstance(optimizer, _ADAPTIVE)
    )
    return None if decoupled else f"weight decay that {name} adds to the gradient has no mirror time; decouple it"


class MirrorClock:
    """a_t of named sets of parameter groups, a step at a time from 0 on; of a set, that of the group that decays most.

    times: a_t by name, NaN from a step on that has no time.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.times = dict.fromkeys(names, 0.0)
        self._undecided: list[tuple[Tensor | None, dict[str, float | Tensor]]] = []

    def take_step(self, optimizer: Optimizer, groups: Mapping[str, Sequence[Group]], found_inf: Tensor | None) -> None:
        """Count the step that `optimizer` has just taken; what stands on a device is not read before `settle`.

        Args:
            optimizer: the innermost one.
            groups: each set's, as the step used them.
            found_inf: see `StepStatistics`.
        """
        rates = {name: _largest([time_of_step(optimizer, group) for group in own]) for name, own in groups.items()}
        if found_inf is not None or any(isinstance(rate, Tensor) for rate in rates.values()):
            self._undecided.append((found_inf, rates))
        else:
            self._fall(rates)

    def settle(self) -> int:
        """Read what stands on the device: learning rates, and which steps were skipped there; returns how many were."""
        undecided, self._undecided = self._undecided, []
        skipped = 0
        for found_inf, rates in undecided:
            if found_inf is not None and found_inf.item():
                skipped += 1
            else:
                self._fall(rates)
        return skipped

    def lowest(self, name: str) -> float:
        """What a_t is at the least, reading nothing off a device: as if no step since `settle` was skipped there."""
        time = self.times[name]
        for _, rates in self._undecided:
            rate = rates[name]
            time -= math.inf if isinstance(rate, Tensor) else rate
        return time

    def _fall(self, rates: Mapping[str, float | Tensor]) -> None:
        for name, rate in rates.items():
            self.times[name] = self.times.get(name, 0.0) - float(rate)


def planned_time(
    optimizer: Optimizer, groups: Sequence[Group], scheduler: object, *, first: int, last: int
) -> float | None:
    """How far a_t of `groups` is to fall from step `first` until `last` steps are done; None where no plan is known.

    Plans are those of a LambdaLR, as the Trainer's schedulers are but for a few. No step is skipped in them.
    """
    if not isinstance(scheduler, LambdaLR) or len(scheduler.base_lrs) != len(optimizer.param_groups):
        return None
    own = {id(group) for group in groups}
    largest: dict[Any, float] = {}  # by the function that schedules; most often there is one
    for group, base, function in zip(optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
        if id(group) in own:
            rate = float(time_of_step(optimizer, {**group, "lr": float(base)}))
            largest[function] = max(rate, largest.get(function, 0.0))
    return -sum(max(rate * function(step) for function, rate in largest.items()) for step in range(first, last))


def _largest(values: Sequence[float | Tensor]) -> float | Tensor:
    """The largest, or NaN if any is NaN."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    if not tensors:
        return math.nan if any(map(math.isnan, values)) else max(float(value) for value in values)
    return torch.stack([torch.full_like(tensors[0], v) if not isinstance(v, Tensor) else v for v in values]).max()
