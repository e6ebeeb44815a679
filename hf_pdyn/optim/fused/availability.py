"""Whether there is a fused step for some tensors, and whether it is worth compiling."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from hf_pdyn.optim.fused import cpu, gpu
from hf_pdyn.optim.step_work import Update

Advance = Callable[..., Tensor]

WORTH_COMPILING = 2**16
"""Elements on a device from which `fused=None` compiles: a tensor step of fewer takes about a millisecond."""

_MODULES = {"cpu": cpu, "cuda": gpu}

_PLAIN = (Tensor, nn.Parameter)
"""Of other classes, which may hold their elements elsewhere, an address says nothing."""


def why_not(group: Mapping[str, Any], params: Iterable[Tensor]) -> str | None:
    """Why `params` of this group cannot take the fused step, as far as can be told without compiling it."""
    if group["bias_correction"] != "eq18":
        return f'it computes bias_correction="eq18" alone, got "{group["bias_correction"]}"'
    for param in params:
        if type(param) not in _PLAIN:
            return f"it takes plain tensors and nn.Parameter, got a parameter that is a {type(param).__name__}"
        module = _MODULES.get(param.device.type)
        if module is None:
            return f"it runs on {' and '.join(_MODULES)}, got a parameter on {param.device}"
        if param.dtype not in module.DTYPES:
            known = ", ".join(str(dtype) for dtype in module.DTYPES)
            return f"on {param.device.type} it takes {known}, got a parameter of {param.dtype}"
        reason = module.why_not_here()
        if reason is not None:
            return reason
    return None


def advance_on(device: torch.device) -> Advance:
    """The fused `advance` of `device`, compiled if need be; RuntimeError where that fails."""
    module = _MODULES.get(device.type)
    if module is None:
        raise RuntimeError(f"The fused step runs on {' and '.join(_MODULES)}, got parameters on {device}.")
    failure = _failure(device.type)
    if failure is not None:
        raise RuntimeError(failure)
    return module.advance


def advance_if_worth_it(device: torch.device, numel: int) -> Advance | None:
    """The same for an optimizer that steps `numel` elements there; None where the tensor step shall do.

    The choice depends on nothing that differs from one run to the next, such as what is compiled already. Where a
    compiler is missing or fails, a warning says so, once in a process.
    """
    module = _MODULES.get(device.type)
    if module is None or numel < WORTH_COMPILING or module.why_not_here() is not None:
        return None
    failure = _failure(device.type)
    if failure is not None:
        _warn_once(failure)
        return None
    return module.advance


def takes(update: Update) -> bool:
    """Whether the fused step can take this one: its tensors are what their addresses say.

    Plain tensors of one size on one device, of dtypes that the kernel knows, with their elements in one order and in
    one piece. A gradient in another order is copied.
    """
    # Once a tensor and step: numel and is_cpu cost a third of shape and device.
    theta, grad, maximum = update.theta, update.grad, update.max_exp_avg_sq
    is_cpu, numel = theta.is_cpu, theta.numel()
    module = cpu if is_cpu and _MODULES["cpu"] is cpu else _MODULES.get(theta.device.type)
    if module is None or theta.dtype not in module.DTYPES or grad.dtype not in module.DTYPES or grad.is_neg():
        return False
    if update.group["bias_correction"] != "eq18":
        return False
    moments = (update.exp_avg, update.exp_avg_sq) if maximum is None else (update.exp_avg, update.exp_avg_sq, maximum)
    if type(theta) not in _PLAIN or type(grad) not in _PLAIN or grad.numel() != numel or grad.is_cpu != is_cpu:
        return False
    contiguous = theta.is_contiguous()
    for moment in moments:
        if type(moment) not in _PLAIN or moment.dtype != torch.float32:
            return False
        if moment.numel() != numel or moment.is_cpu != is_cpu or (not is_cpu and moment.device != theta.device):
            return False
        contiguous = contiguous and moment.is_contiguous()
    if contiguous:
        if not grad.is_contiguous():
            update.grad = grad.contiguous()
        return True
    if theta.layout != torch.strided or grad.layout != torch.strided:
        return False
    strides = theta.stride()
    if any(moment.stride() != strides for moment in moments):
        return False
    # Without data: its strides are the tensor's own if that has neither gaps nor overlaps.
    if torch.empty_like(theta, device="meta").stride() != strides:
        return False
    if grad.stride() != strides:
        update.grad = torch.empty_like(theta, dtype=grad.dtype).copy_(grad)
    return True


@cache
def _failure(device_type: str) -> str | None:
    """Compiles what a step on such a device needs; what to tell the user where that fails."""
    module = _MODULES[device_type]
    try:
        module.prepare()
    except torch.OutOfMemoryError:
        raise  # no reason for another step
    except Exception as error:
        return (
            f"The fused step for {device_type} could not be compiled, which needs {module.NEEDS}: {_essence(error)}. "
            "fused=False takes the tensor step, which is slower, without asking."
        )
    return None


def _essence(error: Exception) -> str:
    """What went wrong, of a text that begins with the whole command line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    telling = [line for line in lines if re.search("error:|not found|no such|denied|no space", line, re.IGNORECASE)]
    return " ".join(" ".join((telling or lines[-2:])[:2]).split())[:300]


@cache
def _warn_once(failure: str) -> None:
    warnings.warn(f"{failure} This run takes the tensor step.", stacklevel=2)
