"""What rounding leaves of bf16 and fp16 parameters, stored beside them: 2 bytes a parameter, as tensor functions.

A parameter w is float32's x rounded to nearest. The correction is what x has beside w, as a whole number c of 16 bits:

=====  ===================================================  ====================================================
w      x                                                    precision of x
=====  ===================================================  ====================================================
bf16   the float32 whose bits are those of w, then 16 of 0,  float32's own, bit for bit
       plus c
fp16   w + c 2^(e-24) for an exponent e of w, at least -14  float32's own where abs(w) >= 2^-14, else 2^-38
=====  ===================================================  ====================================================

A step reads x, moves it and stores both again, so that updates too small to move w add up in c. The sum of a bf16
parameter and its correction is what a float32 parameter would be, and stalls where that does. Where somebody else has
written w, c is at most half the spacing of its numbers, which is how far a step then is from w.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

STORAGE = torch.float16
"""Holds the 16 bits of c, which are no float16: of 16-bit types, collectives know floats alone."""

DTYPES = (torch.bfloat16, torch.float16)

NAME = "weight_correction"
"""The key in a parameter's state, and the option."""


def wanted(group: Mapping[str, Any], param: Tensor) -> bool:
    """Whether `param` of `group` has a correction."""
    return group[NAME] and param.dtype in DTYPES


def of(group: Mapping[str, Any], state: Mapping[str, Any]) -> Tensor | None:
    """The correction that a step keeps; None where the group has none."""
    return state.get(NAME) if group[NAME] else None


def zeros(param: Tensor) -> Tensor:
    """The correction of a parameter that nothing has been left of."""
    return torch.zeros_like(param, dtype=STORAGE, memory_format=torch.preserve_format)


def joined(theta: Tensor, correction: Tensor) -> Tensor:
    """X in float32, new."""
    c = correction.view(torch.int16).int()
    if theta.dtype == torch.bfloat16:
        bits = theta.view(torch.int16).int()
        # Beside a zero that somebody else has written, a negative c would make NaN.
        return ((bits << 16) + torch.where((bits & 0x7FFF) == 0, 0, c)).view(torch.float32)
    w = theta.float()
    return w + c * _two_to(_exponent(w) - 24)


def split(exact: Tensor, theta: Tensor, correction: Tensor) -> None:
    """Store a float32 x in both, in place."""
    if theta.dtype == torch.bfloat16:
        bits = exact.view(torch.int32)
        rounded = (bits + 0x8000) >> 16  # ties away from zero: either neighbour will do, and c has no room for +2^15
        c = bits - (rounded << 16)
        theta.copy_(rounded.to(torch.int16).view(torch.bfloat16))
        is_nan = exact.isnan()
        theta.masked_fill_(is_nan, torch.nan)
        correction.copy_(c.masked_fill_(is_nan, 0).to(torch.int16).view(STORAGE))
    else:
        theta.copy_(exact)
        w = theta.float()
        left = (exact - w) * _two_to(24 - _exponent(w))
        correction.copy_(torch.where(w.isfinite(), left, 0.0).round_().to(torch.int16).view(STORAGE))


def _exponent(w: Tensor) -> Tensor:
    """The exponents of fp16 numbers in float32, as int32; -14 for smaller ones."""
    return (((w.view(torch.int32) >> 23) & 0xFF) - 127).clamp_(-14, 15)


def _two_to(n: Tensor) -> Tensor:
    return ((n + 127) << 23).view(torch.float32)


def check_reaches_some(groups: Iterable[Mapping[str, Any]]) -> None:
    """ValueError where the option is set and no parameter is of 16 bits."""
    params = [param for group in groups if group[NAME] for param in group["params"]]
    if params and not any(param.dtype in DTYPES for param in params):
        raise ValueError(
            f"{NAME}=True keeps what rounding leaves of bf16 and fp16 parameters, got {params[0].dtype} alone. Leave "
            "it out, or move the model to bf16 first."
        )


def warn_of_none(groups: Iterable[Mapping[str, Any]]) -> None:
    """Say once that a step has no parameter of 16 bits any more: launches replace parameters by float32 copies."""
    params = [param for group in groups for param in group["params"]]
    if not any(param.dtype in DTYPES for param in params):
        _say_once(
            f"{NAME}=True does nothing: this optimizer steps parameters of {params[0].dtype}, which have no rounding "
            "to keep. DeepSpeed, for one, keeps float32 copies of bf16 parameters by itself."
        )


@cache
def _say_once(text: str) -> None:
    warnings.warn(text, stacklevel=2)


def convert_state(state: dict[str, Any], param: Tensor, *, wanted: bool) -> str | None:
    """Give a loaded state the correction that the run wants, or take it; what was done, None for nothing."""
    if not state or (NAME in state) == wanted:
        return None
    if wanted:
        state[NAME] = zeros(param)
        return "begin at 0, since the checkpoint has none"
    del state[NAME]
    return "are left out, since this run has weight_correction=False"
