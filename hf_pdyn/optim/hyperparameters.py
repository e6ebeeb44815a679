"""What a group's hyper-parameters may be, and what a checkpoint's groups must have in common with the optimizer's."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from numbers import Real
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from hf_pdyn.common.errors import check_choice
from hf_pdyn.optim.equation import SMALLEST_EPS, usable_eps

UpdateScale = Literal["raw", "adam"]
StateDtype = Literal["fp32", "16bit", "8_16bit"]
BiasCorrection = Literal["eq18", "padam"]
Nonfinite = Literal["apply", "skip"]

_BOOLEANS = ("amsgrad", "maximize", "decoupled_weight_decay", "weight_correction")
_SETTINGS = (
    *("p", "betas", "eps", "weight_decay", "amsgrad", "maximize", "decoupled_weight_decay", "update_scale"),
    "bias_correction",
)

TENSOR_STEP_ONLY: dict[str, Any] = {"bias_correction": "eq18"}
"""Options that only the tensor step has. At the value here compiled steps compute the same; others they do not take."""


def why_tensor_step_only(group: Mapping[str, Any]) -> str | None:
    """Which setting of this group compiled steps do not compute; None where there is none."""
    for name, value in TENSOR_STEP_ONLY.items():
        if group[name] != value:
            return f"it computes {name}={_shown(value)} alone, got {_shown(group[name])}"
    return None


def _shown(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def check_path(*, foreach: bool | None, fused: bool | None) -> None:
    """ValueError for a way to compute steps that contradicts itself."""
    for name, value in (("foreach", foreach), ("fused", fused)):
        if value not in (None, True, False):
            raise ValueError(f"{name} must be True, False or None, got {value!r}.")
    if foreach and fused:
        raise ValueError("foreach and fused are two ways to compute a step, got both. Leave one of them at None.")


def check_nonfinite(value: str) -> None:
    """ValueError for an unknown value."""
    check_choice("nonfinite", value, get_args(Nonfinite))


_LARGEST_M = 15.4
"""The largest m / 2^k in 8 bits, where sqrt(v) is less than 2^(k+1): see `state_format`."""

_NEEDS_THE_WHOLE = {
    "update_scale": ("adam", "matches the size of the whole update", "raw"),
    "nonfinite": ("skip", "looks for NaN and infinity in the whole gradient", "apply"),
}


def refuse_what_needs_the_whole(settings: Mapping[str, Any], because: str) -> None:
    """ValueError for settings that need the whole gradient, where a launch gives the optimizer a part of it."""
    for name, (value, what_it_does, default) in _NEEDS_THE_WHOLE.items():
        if settings.get(name) == value:
            raise ValueError(
                f'{name}="{value}" {what_it_does}, and {because}. Use ZeRO, DDP or FSDP2, or leave {name} at {default}.'
            )


def check_same_groups(saved: list[dict[str, Any]], own: list[dict[str, Any]]) -> None:
    """ValueError where a checkpoint's groups are another optimizer's, or are split otherwise."""
    if any("p" not in group for group in saved):
        raise ValueError(
            "This checkpoint's optimizer state has no exponent p: it was written by another optimizer than "
            "Padam. Resume with the optimizer that wrote it, or start from the model weights alone."
        )
    if [_describe(group) for group in saved] != [_describe(group) for group in own]:
        differing = "; ".join(
            f"group {i}: {theirs} in the checkpoint, {ours} here"
            for i, (theirs, ours) in enumerate(_pairs(saved, own))
            if theirs != ours
        )
        raise ValueError(
            f"The checkpoint has {len(saved)} parameter groups and this optimizer {len(own)}, and they differ: "
            f"{differing}. Train the same parameters with the same labels and overrides as the run that wrote it."
        )


def say_what_is_overruled(saved: list[dict[str, Any]], own: list[dict[str, Any]]) -> None:
    """Warn of settings that a checkpoint overrules: what its run began with, not what callbacks have made of them."""
    labels: dict[tuple[str, str], list[str]] = {}
    for theirs, ours in zip(saved, own, strict=True):
        scheduled = ("lr",) if "initial_lr" in theirs and "initial_lr" in ours else ()
        for name in (*_SETTINGS, *scheduled):
            before, now = (group.get(f"initial_{name}", group.get(name)) for group in (theirs, ours))
            if name == "betas":
                before, now = list(before or ()), list(now or ())  # a tuple or, from a checkpoint, perhaps a list
            if before != now:
                label = f"{ours['pathway']}/{ours['component']}" if "pathway" in ours else "a group"
                labels.setdefault((name, f"{name}={now} by the checkpoint's {before}"), []).append(label)
    if not labels:
        return
    told = [text + _of(found, len(own)) for (_, text), found in labels.items()]
    names = {name for name, _ in labels}
    movable, others = [name for name in _MOVED_BY_SCHEDULES if name in names], names - set(_MOVED_BY_SCHEDULES)
    cures = [f"To change {' or '.join(movable)} in a resumed run, use a schedule."] if movable else []
    cures += [f"To change {' or '.join(sorted(others))}, start a new run from its weights."] if others else []
    warnings.warn(
        f"Resuming overrules {', '.join(told)}: settings come with the optimizer's state. {' '.join(cures)}",
        stacklevel=4,
    )


_MOVED_BY_SCHEDULES = ("p", "weight_decay")


def _of(labels: list[str], groups: int) -> str:
    """Which groups are meant; empty for all."""
    if len(labels) == groups:
        return ""
    found = list(dict.fromkeys(labels))
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return f" (of {', '.join(found[:3])}{more})"


def _pairs(saved: list[dict[str, Any]], own: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    for i in range(max(len(saved), len(own))):
        yield tuple(_describe(groups[i]) if i < len(groups) else "nothing" for groups in (saved, own))  # type: ignore[misc]


def _describe(group: dict[str, Any]) -> str:
    label = f"{group['pathway']}/{group['component']} " if "pathway" in group else ""
    return f"{label}{len(group['params'])} tensors"


def check_hyperparameters(group: dict[str, Any]) -> None:
    """Check every hyper-parameter of one parameter group, as torch's optimizers do.

    Raises:
        ValueError: a value is of the wrong type or out of range.
    """
    lr = group["lr"]
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            raise ValueError(f"A tensor lr must have one element, got shape {tuple(lr.shape)}.")
    elif not _is_finite(lr, at_least=0):
        raise ValueError(f"Invalid learning rate: lr must be finite and >= 0, got {lr!r}.")
    betas = group["betas"]
    if not (isinstance(betas, (tuple, list)) and len(betas) == 2):
        raise ValueError(f"betas must be a pair of numbers, got {betas!r}.")
    for i, beta in enumerate(betas):
        if isinstance(beta, Tensor):
            raise ValueError(f"betas must be numbers, got {beta!r} at index {i}. Give float(beta).")
        if not (_is_finite(beta, at_least=0) and beta < 1):
            raise ValueError(f"Invalid beta parameter at index {i}: each must lie in [0, 1), got {beta!r}.")
    if not _is_finite(group["eps"], at_least=0):
        raise ValueError(f"Invalid epsilon value: eps must be finite and >= 0, got {group['eps']!r}.")
    if not _is_finite(group["p"]):
        raise ValueError(f"Invalid exponent: p must be a finite number, got {group['p']!r}.")
    if not _is_finite(group["weight_decay"], at_least=0):
        raise ValueError(f"Invalid weight_decay value: it must be finite and >= 0, got {group['weight_decay']!r}.")
    check_choice("update_scale", group["update_scale"], get_args(UpdateScale))
    check_choice("bias_correction", group["bias_correction"], get_args(BiasCorrection))
    check_choice("state_dtype", group["state_dtype"], get_args(StateDtype))
    for name in _BOOLEANS:
        if not isinstance(group[name], bool):
            raise ValueError(f"{name} must be True or False, got {group[name]!r}.")
    beta1, beta2 = betas
    if group["state_dtype"] == "8_16bit" and 2 * (1 - beta1) / (1 - beta2) ** 0.5 > _LARGEST_M:
        raise ValueError(
            'state_dtype="8_16bit" stores a first moment of at most 7.7 times the root of the second, and after a step '
            f"it is (1 - beta1) / (1 - beta2)^(1/2) times that, got betas={betas}. Use 16bit."
        )


def check_state_dtype(group: dict[str, Any]) -> None:
    """ValueError where a parameter needs moments of more bits than the group's `state_dtype` has."""
    if group["state_dtype"] != "fp32":
        for param in group["params"]:
            if param.dtype not in (torch.float32, torch.bfloat16, torch.float16):
                raise ValueError(
                    f'state_dtype="{group["state_dtype"]}" is for parameters of float32, bf16 and fp16, got one of '
                    f"{param.dtype}. Leave state_dtype at fp32 for its group."
                )


def check_one_update_scale(groups: list[dict[str, Any]]) -> None:
    """ValueError where groups differ in `update_scale`."""
    first, *others = [group["update_scale"] for group in groups]
    if any(other != first for other in others):
        raise ValueError(
            "update_scale is one scalar for all groups (one each would undo the allocation), got "
            f"{', '.join(sorted({first, *others}))}. Set it on the optimizer."
        )


def warn_of_small_eps(eps: float) -> None:
    """Say that float32 cannot hold `eps`, and what a step uses instead."""
    if usable_eps(eps) != eps:
        warnings.warn(
            f"eps must be 0 or at least float32's smallest normal number, got {eps:g}. Steps use {SMALLEST_EPS:.3g} "
            "instead: an eps rounded to 0 gives NaN where a gradient has always been 0. eps is the square of Adam's "
            "epsilon, so give --adam_epsilon 1.1e-19 or more.",
            stacklevel=4,
        )


def take_numbers(groups: Iterable[dict[str, Any]]) -> None:
    """Make Python's numbers of p and weight decay that callbacks have written as numpy's or as tensors.

    torch loads no checkpoint with numpy's numbers, and no log record can hold a tensor. What is no number stays.
    """
    for group in groups:
        for name in _WRITTEN:
            value = group[name]
            if type(value) is not float and type(value) is not int:
                is_one = isinstance(value, Real) or (isinstance(value, Tensor) and value.numel() == 1)
                if is_one and not isinstance(value, bool):
                    group[name] = float(value)


def check_written(groups: Iterable[Mapping[str, Any]]) -> None:
    """ValueError for a p or a weight decay that is no finite number: every weight would be none after the step."""
    for group in groups:
        for name in _WRITTEN:
            value = group[name]
            if not (type(value) is float and math.isfinite(value)) and not _is_finite(value):
                raise ValueError(
                    f"{name} must be a finite number, got {value!r} in a parameter group. What writes it there between "
                    "steps, a callback or a schedule, must write a finite float."
                )


_WRITTEN = ("p", "weight_decay")


def _is_finite(value: Any, *, at_least: float = -math.inf) -> bool:
    """Whether `value` is a finite number, no less than `at_least`; booleans and tensors are no numbers here."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    return is_number and value >= at_least and abs(value) <= sys.float_info.max  # math.isfinite(10**400) raises
