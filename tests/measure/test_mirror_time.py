import math
from typing import Any

import pytest
import torch
from torch import nn, optim

from hf_pdyn import Padam
from hf_pdyn.measure.mirror_time import time_of_step, why_no_time

SGD: dict[str, dict[str, Any]] = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "dampening": {"momentum": 0.9, "dampening": 0.5},
    "maximize": {"momentum": 0.5, "maximize": True},
}


@pytest.mark.parametrize("options", SGD.values(), ids=SGD)
def test_pure_decay_is_a_t(options: dict[str, Any]) -> None:
    """Without a loss, weights are multiplied by exp(a_t), but for what the buffer takes to fill and what lr^2 does."""
    momentum, lr, weight_decay, steps = options.get("momentum", 0.0), 1e-4, 0.5, 4000
    param = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = optim.SGD([param], lr=lr, weight_decay=weight_decay, **options)
    time = 0.0
    for _ in range(steps):
        param.grad = torch.zeros_like(param)
        optimizer.step()
        time -= float(time_of_step(optimizer, optimizer.param_groups[0]))
    assert math.log(param.item()) == pytest.approx(time, rel=2 / ((1 - momentum) * steps) + 0.01)


OPTIMIZERS: dict[str, tuple[type[optim.Optimizer], dict[str, Any], bool]] = {
    "AdamW": (optim.AdamW, {}, True),
    "Padam": (Padam, {"p": 0.3}, True),
    "coupled Padam": (Padam, {"p": 0.3, "decoupled_weight_decay": False}, False),
    "Adam": (optim.Adam, {}, False),
    "coupled NAdam": (optim.NAdam, {}, False),
    "decoupled NAdam": (optim.NAdam, {"decoupled_weight_decay": True}, True),
    "RMSprop": (optim.RMSprop, {}, False),
    "Adagrad": (optim.Adagrad, {}, False),
}


@pytest.mark.parametrize(("kind", "options", "has_time"), OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_coupled_decay_has_a_time_under_sgd_alone(
    kind: type[optim.Optimizer], options: dict[str, Any], has_time: bool
) -> None:
    optimizer = kind([nn.Parameter(torch.ones(1))], lr=1e-2, weight_decay=0.1, **options)  # type: ignore[call-arg]
    (group,) = optimizer.param_groups
    if has_time:
        assert time_of_step(optimizer, group) == pytest.approx(1e-3)
        assert why_no_time(optimizer, group) is None
    else:
        assert math.isnan(time_of_step(optimizer, group))
        assert f"{kind.__name__} adds to the gradient has no mirror time" in str(why_no_time(optimizer, group))
    group["weight_decay"] = 0.0
    assert time_of_step(optimizer, group) == 0.0


def test_momentum_that_never_forgets_has_no_time() -> None:
    optimizer = optim.SGD([nn.Parameter(torch.ones(1))], lr=1e-2, weight_decay=0.1, momentum=1.0)
    assert "momentum=1.0" in str(why_no_time(optimizer, optimizer.param_groups[0]))
