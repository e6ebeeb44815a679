"""a_t, the time variable of *time-dependent mirror flows* (TMF), of the mirror map h = ||theta||^2 / 2.

Weight decay that is coupled becomes part of the gradient, and what it adds to a_t depends on what the optimizer does
with a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, optim
from torch.optim import Optimizer

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


def time_of_step(optimizer: Optimizer, group: Mapping[str, Any]) -> float | Tensor:
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


def why_no_time(optimizer: Optimizer, group: Mapping[str, Any]) -> str | None:
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
