"""Whether there is a fused step for some tensors, and whether it is worth compiling."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hf_pdyn.optim import weight_correction
from hf_pdyn.optim.fused import cpu, gpu, self_check
from hf_pdyn.optim.fused.building import essence
from hf_pdyn.optim.fused.layout import addresses_of
from hf_pdyn.optim.hyperparameters import why_tensor_step_only
from hf_pdyn.optim.state_format import M_STORAGE, V_STORAGE
from hf_pdyn.optim.step_work import Task, Update

FusedStep = ModuleType
"""`cpu` or `gpu`: DTYPES, what it NEEDS for compiling, `why_not_here`, `prepare`, `variant`, `Tables` and `advance`."""

WORTH_COMPILING = 2**16
"""Elements on a device from which `fused=None` compiles: a tensor step of fewer takes about a millisecond."""

_MODULES = {"cpu": cpu, "cuda": gpu}

_PLAIN = (Tensor, nn.Parameter)
"""Classes whose address says where their elements are; others may hold them elsewhere."""


def why_not(group: Mapping[str, Any], params: Iterable[Tensor]) -> str | None:
    """Why `params` of this group cannot take the fused step, as far as can be told without compiling it."""
    other = why_tensor_step_only(group)
    if other is not None:
        return other
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


def fused_on(device: torch.device) -> FusedStep:
    """The fused step of `device`, compiled if need be; RuntimeError where that fails."""
    module = _MODULES.get(device.type)
    if module is None:
        raise RuntimeError(f"The fused step runs on {' and '.join(_MODULES)}, got parameters on {device}.")
    failure = _failure(device.type)
    if failure is not None:
        raise RuntimeError(failure)
    return module


def fused_if_worth_it(device: torch.device, numel: int) -> FusedStep | None:
    """The fused step of `device` for an optimizer that steps `numel` elements there, or None for the tensor step.

    The choice depends on nothing that differs from one run to the next, such as what is compiled already. Where a
    compiler is missing or fails, a warning says so, once in a process.
    """
    module = _MODULES.get(device.type)
    if module is None or numel < WORTH_COMPILING or module.why_not_here() is not None:
        return None
    failure = _failure(device.type)
    if failure is not None:
        warn_once(failure)
        return None
    return module


def takes(module: FusedStep, update: Update) -> bool:
    """Whether the fused step can take `update`; if so, its addresses and its variant are known from here on.

    Its tensors must be what their addresses say: of one size on one device, of dtypes that the kernel knows, with their
    elements in one order and in one piece. A gradient in another order is copied.
    """
    if not _is_unchanged(update):
        update.checked = None
        if not _fits(module, update):
            return False
        update.addresses = addresses_of(update)
        if update.theta.is_contiguous():
            update.checked = _Checked(_of_state(update.addresses), update.theta.numel(), update.grad.dtype)
    update.variant = module.variant(update)
    return True


class _Checked(NamedTuple):
    """An update that fits, its elements in a row. state: addresses of theta and the moments."""

    state: tuple[int, ...]
    numel: int
    grad_type: torch.dtype


def _is_unchanged(update: Update) -> bool:
    """Whether all is as at the step when it was looked at, but for where the gradient is.

    A few of the looks of `_fits`, since they are taken once a tensor and step: other data of a parameter or a moment
    (another device, dtype, size or memory format) has another address, or is a view of the old.
    """
    checked, theta, grad = update.checked, update.theta, update.grad
    if (
        checked is None
        or type(grad) is not Tensor
        or grad.dtype is not checked.grad_type
        or not grad.numel() == checked.numel == theta.numel()
        or not grad.is_contiguous()
        or not theta.is_contiguous()
        or grad.is_neg()
        or why_tensor_step_only(update.group) is not None
    ):
        return False
    update.addresses = addresses_of(update)
    return _of_state(update.addresses) == checked.state


def _of_state(addresses: tuple[int, ...]) -> tuple[int, ...]:
    return addresses[:1] + addresses[2:]


def _fits(module: FusedStep, update: Update) -> bool:
    theta, grad, maximum = update.theta, update.grad, update.max_exp_avg_sq
    is_cpu, numel = theta.is_cpu, theta.numel()
    if theta.dtype not in module.DTYPES or grad.dtype not in module.DTYPES or grad.is_neg():
        return False
    if why_tensor_step_only(update.group) is not None:
        return False
    moments = (update.exp_avg, update.exp_avg_sq) if maximum is None else (update.exp_avg, update.exp_avg_sq, maximum)
    if type(theta) not in _PLAIN or type(grad) not in _PLAIN or grad.numel() != numel or grad.is_cpu != is_cpu:
        return False
    contiguous = theta.is_contiguous()
    stored = (torch.float32, torch.float32)
    if update.exp_avg.dtype in M_STORAGE.values():
        stored = (update.exp_avg.dtype, V_STORAGE)
    for moment, dtype in zip(moments, (*stored, stored[1]), strict=False):
        if type(moment) not in _PLAIN or moment.dtype != dtype:
            return False
        if moment.numel() != numel or moment.is_cpu != is_cpu or (not is_cpu and moment.device != theta.device):
            return False
        contiguous = contiguous and moment.is_contiguous()
    correction = update.weight_correction
    if correction is not None:
        moments = (*moments, correction)
        if type(correction) not in _PLAIN or correction.dtype != weight_correction.STORAGE:
            return False
        if correction.numel() != numel or correction.device != theta.device:
            return False
        contiguous = contiguous and correction.is_contiguous()
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


_checks: dict[Hashable, str | None] = {}
"""What the self-check of every kernel that this process uses has found."""


def why_distrusted(
    device: torch.device,
    module: FusedStep,
    updates: Iterable[Update],
    passes: Sequence[Task],
    *,
    clipped: bool,
    skipping: bool = False,
) -> str | None:
    """What is wrong with a kernel that is about to take `updates`; each is checked once in a process.

    passes, clipped, skipping: as `self_check.disagreement` has them. Nothing is checked within the capture of a CUDA
    graph: a step must have run before.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return None
    for kind, update in {update.variant: update for update in updates}.items():
        key = (device, kind, tuple(passes), clipped, skipping)
        if key not in _checks:
            _checks[key] = self_check.disagreement(module.advance, update, passes, clipped=clipped, skipping=skipping)
        found = _checks[key]
        if found is not None:
            return f"The fused step for {device.type} disagrees with the tensor step: {found}. Please report it."
    return None


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
            f"The fused step for {device_type} could not be compiled, which needs {module.NEEDS}: {essence(error)}. "
            "fused=False takes the tensor step, which is slower, without asking."
        )
    return None


@cache
def warn_once(failure: str) -> None:
    """Say that a run cannot have the fused step, once in a process."""
    warnings.warn(f"{failure} This run takes the tensor step.", stacklevel=2)
