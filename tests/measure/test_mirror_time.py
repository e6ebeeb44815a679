import math
from typing import Any

import pytest
import torch
from torch import nn, optim

from hf_pdyn import Padam
from hf_pdyn.measure.mirror_time import MirrorClock, planned_time, time_of_step, why_no_time

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


def adamw(**options: Any) -> optim.Optimizer:
    groups = [{"params": [nn.Parameter(torch.ones(1))], "weight_decay": decay} for decay in (0.1, 0.3, 0.0)]
    return optim.AdamW(groups, **options)


def test_a_clock_counts_the_group_that_decays_most() -> None:
    optimizer = adamw(lr=1e-2)
    weak, strong, without = ([group] for group in optimizer.param_groups)
    clock = MirrorClock(["weak", "all"])
    for _ in range(3):
        clock.take_step(optimizer, {"weak": weak, "all": [*weak, *strong, *without]}, None)
    assert clock.times == pytest.approx({"weak": -3e-3, "all": -9e-3})
    assert clock.settle() == 0


def test_what_stands_on_a_device_is_read_when_the_clock_is_settled() -> None:
    """A skipped step does not count; until then the clock knows the least that a_t can be."""
    optimizer = adamw(lr=1e-2)
    groups = {"": optimizer.param_groups}
    clock = MirrorClock(groups)
    for found_inf in (0.0, 1.0, 0.0):
        clock.take_step(optimizer, groups, torch.tensor(found_inf))
    assert clock.times[""] == 0
    assert clock.lowest("") == pytest.approx(-9e-3)
    assert clock.settle() == 1
    assert clock.times[""] == clock.lowest("") == pytest.approx(-6e-3)
    on_device = adamw(lr=torch.tensor(1e-2))
    clock.take_step(on_device, {"": on_device.param_groups}, None)
    assert clock.lowest("") == -math.inf
    assert clock.settle() == 0
    assert clock.times[""] == pytest.approx(-9e-3)


def test_a_step_without_a_time_ends_it() -> None:
    optimizer = optim.Adam([nn.Parameter(torch.ones(1))], weight_decay=0.1)
    clock = MirrorClock([""])
    clock.take_step(optimizer, {"": optimizer.param_groups}, None)
    assert math.isnan(clock.times[""]) and math.isnan(clock.lowest(""))


@pytest.mark.parametrize("groups", [slice(0, 1), slice(0, 3)])
def test_the_plan_of_a_schedule_is_what_its_steps_come_to(groups: slice) -> None:
    optimizer = adamw(lr=1e-2)
    functions = [lambda step: 1 - step / 20, lambda step: 0.5 if step < 5 else 0.1, lambda step: 1.0]
    scheduler = optim.lr_scheduler.LambdaLR(optimizer, functions)
    chosen = optimizer.param_groups[groups]
    planned = planned_time(optimizer, chosen, scheduler, first=3, last=15)
    clock = MirrorClock([""])
    for step in range(15):
        if step >= 3:
            clock.take_step(optimizer, {"": chosen}, None)
        optimizer.step()
        scheduler.step()
    assert planned == pytest.approx(clock.times[""], rel=1e-12)


def test_there_is_no_plan_of_other_schedulers() -> None:
    optimizer = adamw(lr=1e-2)
    assert planned_time(optimizer, optimizer.param_groups, None, first=0, last=9) is None
    plateau = optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    assert planned_time(optimizer, optimizer.param_groups, plateau, first=0, last=9) is None
    other = optim.lr_scheduler.LambdaLR(optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0), lambda step: 1.0)
    assert planned_time(optimizer, optimizer.param_groups, other, first=0, last=9) is None
