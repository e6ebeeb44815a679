"""Moments that torchao and bitsandbytes keep in 8 bits, as tensors of floats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_BITSANDBYTES = {"exp_avg": "1", "exp_avg_sq": "2"}
_BLOCK = 256
"""bitsandbytes 0.50 scales its states by blocks of so many elements."""


def is_adam(optimizer: Optimizer) -> bool:
    """Whether it is Adam or AdamW of torchao or bitsandbytes, whose epsilon stands outside the root as torch's does."""
    if getattr(optimizer, "optimizer_name", None) == "adam":  # LAMB and AdEMAMix of bitsandbytes have other names
        return any(base.__module__.startswith("bitsandbytes.") for base in type(optimizer).__mro__)
    return any(base.__module__ == "torchao.optim.adam" for base in type(optimizer).__mro__)


def has_moment(state: Mapping[str, Any], name: str) -> bool:
    """Whether an optimizer's state has such a moment, in whatever format."""
    return name in state or isinstance(state.get(f"state{_BITSANDBYTES[name]}"), Tensor)


def in_floats(state: Mapping[str, Any], name: str) -> bool:
    """Whether `moment` returns what the state has, not a new tensor of floats made from it."""
    found = state.get(name)
    return isinstance(found, Tensor) and not type(found).__module__.startswith("torchao")


def moment(state: Mapping[str, Any], name: str) -> Tensor | None:
    """`exp_avg` or `exp_avg_sq` of an optimizer's state, in floats; None where the state has no such moment.

    Raises:
        ValueError: the moment is there and cannot be read.
    """
    found = state.get(name)
    if found is None and name in _BITSANDBYTES:
        number = _BITSANDBYTES[name]
        found = state.get(f"state{number}")
        if isinstance(found, Tensor) and not found.is_floating_point():
            return _unblocked(found, state, number)
    if not isinstance(found, Tensor):
        return None
    # torchao 0.18: OptimState8bit and its kin are subclasses that know how.
    if type(found).__module__.startswith("torchao"):
        return found.dequantize()
    if not found.is_floating_point() and not found.is_complex():
        raise ValueError(f"its {name} is {found.dtype}, in a format that hf_pdyn does not know")
    return found


def _unblocked(values: Tensor, state: Mapping[str, Any], number: str) -> Tensor:
    if f"absmax{number}" not in state or values.dtype != torch.uint8:
        raise ValueError(f"its state{number} is {values.dtype}, in a format that hf_pdyn does not know")
    from bitsandbytes.functional import dequantize_blockwise

    scales, code = state[f"absmax{number}"], state[f"qmap{number}"]
    result: Tensor = dequantize_blockwise(values, absmax=scales, code=code, blocksize=_BLOCK)
    return result
