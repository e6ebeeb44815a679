"""A compiled step is compared with the tensor step in float64 before a process first uses it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hf_pdyn.optim import tensor_step, weight_correction
from hf_pdyn.optim.fused import tolerance
from hf_pdyn.optim.hyperparameters import TENSOR_STEP_ONLY
from hf_pdyn.optim.state_format import codes_of, convert_state, format_of
from hf_pdyn.optim.step_work import STEP_SUMS, Advance, Task, Update

_NUMEL = 512
_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
_ROUNDED_APART = 0.02
_NEAR_0 = 1e-3
_GROUP: dict[str, Any] = {
    "lr": 1e-2,
    "betas": (0.9, 0.999),
    "eps": 1e-12,
    "p": 0.5,
    "weight_decay": 0.1,
    "amsgrad": False,
    "maximize": False,
    "decoupled_weight_decay": True,
    **TENSOR_STEP_ONLY,
}
# Exponents with a way of their own in a kernel, and some without; float32 holds them exactly.
_GROUPS = [{**_GROUP, "p": p} for p in (-0.375, 0.0, 0.25, 0.375, 0.5, 1.0)] + [
    {**_GROUP, "p": 0.375, "eps": 1e-3, "betas": (0.0, 0.6), "maximize": True, "decoupled_weight_decay": False}
]


def disagreement(
    advance: Advance, like: Update, passes: Sequence[Task], *, clipped: bool, skipping: bool = False
) -> str | None:
    """Where `advance` differs from the tensor step by more than its tolerance, in words; None where it does not.

    Takes a few milliseconds and draws no number of any global generator. On a GPU it compiles what the run needs, and
    waits for the device.

    Args:
        advance: the step in question.
        like: has the dtypes, device, alignment and kinds of state that the run's updates have.
        passes: the tasks of the run's passes; all but the first have a scale, as matched steps do.
        clipped: whether gradients were clipped.
        skipping: whether the device is told if it skips.
    """
    ours = list(_examples(like))
    exact = [replace(_doubled(update), theta=_theta_of(update).double()) for update in ours]
    gradients = [update.grad for update in exact]
    clip_factor = torch.full((), 0.25, device=like.theta.device) if clipped else None
    told: dict[str, Any] = {"skip": torch.zeros((), device=like.theta.device)} if skipping else {}
    for number, tasks in enumerate(passes):
        scale = torch.full((), 1.25, device=like.theta.device, dtype=torch.float64) if number else None
        sums = advance(ours, tasks, scale=scale, clip_factor=clip_factor, **told)
        tensor_step.advance(exact, tasks & (Task.MOMENTS | Task.APPLY), scale=scale)
        for update, reference in zip(ours, exact, strict=True):
            found = _state_error(update, reference)
            if found is not None:
                return found
        # Sums over the state that the kernel left, so that roundings of that do not enter.
        left = [replace(_doubled(update), grad=grad) for update, grad in zip(ours, gradients, strict=True)]
        asked = tasks & ~(Task.MOMENTS | Task.APPLY)
        exact_sums = tensor_step.advance(left, asked, scale=scale, clip_factor=clip_factor)
        found = _sums_error(sums, exact_sums, ours)
        if found is not None:
            return found
    return None


def _examples(like: Update) -> Iterator[Update]:
    """Moments as after some steps; parameters move by up to a tenth."""
    generator = torch.Generator().manual_seed(0)
    device = like.theta.device
    aligned = not any(address % 16 for address in like.addresses) and not like.theta.numel() % 16
    offset, numel = (0, _NUMEL) if aligned else (1, _NUMEL - 1)

    def normal(dtype: torch.dtype) -> Tensor:
        values = torch.randn(offset + numel, generator=generator, device="cpu")
        return values.to(device, dtype)[offset:]

    def second_moment() -> Tensor:
        return normal(torch.float32).square_().add_(0.01)

    for group in _GROUPS:
        theta, grad, exp_avg = normal(like.theta.dtype), normal(like.grad.dtype), normal(torch.float32)
        maximum = second_moment() if like.max_exp_avg_sq is not None else None
        t = torch.full((), 3.0, device=device) if isinstance(like.t, Tensor) else 3.0
        state: dict[str, Any] = {"exp_avg": exp_avg, "exp_avg_sq": second_moment()}
        state |= {} if maximum is None else {"max_exp_avg_sq": maximum}
        convert_state(state, format_of(like.exp_avg), number=0)
        m, v, maximum = state["exp_avg"], state["exp_avg_sq"], state.get("max_exp_avg_sq")
        correction = None
        if like.weight_correction is not None:
            theta, correction = theta.clone(), weight_correction.zeros(theta)
            weight_correction.split(normal(torch.float32), theta, correction)
        yield Update(
            group, theta, theta, grad, m, v, maximum, t, number=1, start=2**32 - 100, weight_correction=correction
        )


def _theta_of(update: Update) -> Tensor:
    """The parameter, with its correction if it has one."""
    correction = update.weight_correction
    return update.theta if correction is None else weight_correction.joined(update.theta, correction)


def _doubled(update: Update) -> Update:
    """The same in float64, without a correction; moments in codes as they are."""
    in_codes = format_of(update.exp_avg) != "fp32"
    copies: dict[str, Any] = {}
    for name in ("theta", "grad", *_MOMENTS):
        value = getattr(update, name)
        if value is not None:
            copies[name] = value.clone() if in_codes and name in _MOMENTS else value.to(torch.float64, copy=True)
    return replace(update, weight_correction=None, **copies)


def _state_error(ours: Update, exact: Update) -> str | None:
    theta = _theta_of(ours)
    p, dtype = exact.group["p"], theta.dtype
    if format_of(ours.exp_avg) != "fp32":
        return _error_of_codes(ours, exact)
    limits = dict.fromkeys(("exp_avg", "exp_avg_sq", "max_exp_avg_sq"), tolerance.MOMENT)
    for name, limit in {**limits, "theta": tolerance.of_parameter(dtype, p)}.items():
        value = theta if name == "theta" else getattr(ours, name)
        error = 0.0 if value is None else tolerance.largest_error(value, getattr(exact, name))
        if not error <= limit:
            return f"{name} of {dtype} parameters is off by {error:.1e} at p={p:g}, more than {limit:.1e}"
    return None


def _error_of_codes(ours: Update, exact: Update) -> str | None:
    """What differs by a rounding of float32 before it is stored is seldom stored apart, and then by one code."""
    theta = _theta_of(ours)
    p, dtype = exact.group["p"], theta.dtype
    alike = torch.ones_like(ours.theta, dtype=torch.bool)
    for name in _MOMENTS:
        if getattr(ours, name) is not None:
            apart = codes_of(getattr(ours, name)) - codes_of(getattr(exact, name))
            alike &= apart == 0
            far = apart.abs() > 1
            if getattr(exact, name).dtype == torch.bfloat16:  # beside which a rounding before is not small near 0
                far &= getattr(exact, name).abs() > _NEAR_0
            if far.any() or (apart != 0).double().mean() > _ROUNDED_APART:
                return f"{name} stored in {format_of(ours.exp_avg)} is rounded otherwise at p={p:g}"
    error = tolerance.largest_error(theta[alike], exact.theta[alike])
    limit = tolerance.of_parameter(dtype, p)
    return (
        None
        if error <= limit
        else f"theta of {dtype} parameters is off by {error:.1e} at p={p:g}, more than {limit:.1e}"
    )


def _sums_error(sums: Tensor, exact: Tensor, updates: Sequence[Update]) -> str | None:
    """Relative; logarithms of either sign cancel, so N_p at p=1 is good to SUM a coordinate."""
    floor = torch.full_like(exact, 1e-30)
    column = STEP_SUMS.index("N_p")
    for i, update in enumerate(updates):
        if update.group["p"] == 1:
            floor[i, column] = update.theta.numel()
    errors = (sums.to(exact) - exact).abs() / exact.abs().maximum(floor)
    worst = errors.max().item()
    if worst <= tolerance.SUM:
        return None
    row, column = divmod(int(errors.nan_to_num(nan=float("inf")).argmax()), len(STEP_SUMS))
    return (
        f"the sum {STEP_SUMS[column]} is off by {errors[row, column].item():.1e} of itself at "
        f"p={updates[row].group['p']:g}, more than {tolerance.SUM:.1e}"
    )
