"""Steps that must not wait for the device: on CUDA under torch's own check, without one on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from hf_pdyn import Padam, StepStatistics
from hf_pdyn.measure.windows import Reading

Guard = Callable[[], AbstractContextManager[Any]]

STEPS = 6

# lr as a float, on the CPU, or on the device.
OPTIONS: dict[str, dict[str, Any]] = {
    "decay": {},
    "p=.5": {"p": 0.5},
    "coupled decay": {"decoupled_weight_decay": False},
    "amsgrad": {"amsgrad": True},
    "published": {"bias_correction": "padam"},
    "lr on the CPU": {"lr": "cpu"},
    "lr on the device": {"lr": "device"},
    "matched": {"update_scale": "adam"},
    "matched, lr on the CPU": {"update_scale": "adam", "lr": "cpu"},
    "matched, lr on the device": {"update_scale": "adam", "lr": "device"},
}


def model_on(device: str) -> nn.Module:
    """A weight of several rows of 512 elements, and bias-like parameters that are none: norms take both ways."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(70, 80), nn.LayerNorm(80)).to(device)


def gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for param in model.parameters():
        param.grad = torch.randn(param.shape, generator=generator).to(param.device)


def optimizer_of(model: nn.Module, device: str, **options: Any) -> Padam:
    if "lr" in options:
        options["lr"] = torch.tensor(1e-2).to("cpu" if options["lr"] == "cpu" else device)
    groups = [{"params": [param]} for param in model.parameters()]
    return Padam(groups, **{"lr": 1e-2, "p": 0.25, "weight_decay": 0.1, **options})


def step_alone(name: str, device: str, guard: Guard, **path: Any) -> Padam:
    """Steps with everything moved between them that schedules and callbacks move; only the steps are guarded.

    path: fused, foreach.
    """
    model = model_on(device)
    optimizer = optimizer_of(model, device, **OPTIONS[name], **path)
    for step in range(STEPS):
        gradients(model, step)
        for group in optimizer.param_groups:
            group["p"] += 0.05
            group["lr"] = group["lr"] * 0.9
            group["weight_decay"] = 0.0 if step % 2 else 0.1
        with guard():
            optimizer.step()
    return optimizer


def accumulate(
    optimizer_name: str, device: str, guard: Guard, *, missing: bool = False, **path: Any
) -> Callable[[], Reading]:
    """Every step measured, by the hooks of a guarded step; returns how to read the window.

    The first step is not guarded: it sends the host's list of columns to the device, once.
    missing: every other step has no gradient for one parameter. path: fused, foreach, for Padam.
    """
    model = model_on(device)
    if optimizer_name == "padam":
        optimizer: torch.optim.Optimizer = optimizer_of(model, device, **path)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    statistics = StepStatistics(optimizer, model)
    window = statistics.window()
    for step in range(STEPS):
        gradients(model, step)
        if missing and step % 2:
            model[1].bias.grad = None
        statistics.measure_next_step()
        if step:
            with guard():
                optimizer.step()
        else:
            optimizer.step()
    # A failing measurement ends no training: it empties the window.
    if len(window) != STEPS or window not in statistics.windows:
        raise RuntimeError(f"The window must have all {STEPS} steps, got {len(window)}: measuring stopped.")
    return window.read


@contextmanager
def cuda_guard() -> Iterator[None]:
    """torch's own check: RuntimeError where the host waits for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@contextmanager
def meta_guard() -> Iterator[None]:
    """RuntimeError where the meta device, which has no values to wait for, would wait if it were a CUDA device.

    Reading a value of it fails by itself. Copies between devices, and tensors made of the host's numbers, do not.
    """
    with _NoCopies(), _NoTensorsOfNumbers():
        yield


class _NoCopies(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        source = {torch.ops.aten._to_copy.default: 0, torch.ops.aten.copy_.default: 1}.get(func)
        if source is not None and args[source].device != result.device:
            raise RuntimeError(f"A synchronizing copy from {args[source].device} to {result.device}.")
        return result


class _NoTensorsOfNumbers(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        sent = func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], torch.Tensor)
        if sent and torch.device(kwargs.get("device") or "cpu").type != "cpu":
            raise RuntimeError(f"A synchronizing copy of the host's numbers to {kwargs['device']}.")
        return func(*args, **kwargs)
