"""What the stages of ZeRO share."""

from __future__ import annotations

from typing import Any

from torch import Tensor

_ONE_STEP = "one_step_for_all_groups"
_WAITING = "_hf_pdyn_gradients"


def want_one_step(optimizer: Any) -> None:
    """Say of an (inner) optimizer that its `step` is to be called once for all groups."""
    setattr(optimizer, _ONE_STEP, True)


def wants_one_step(optimizer: Any) -> bool:
    """Whether `want_one_step` was said of it."""
    return getattr(optimizer, _ONE_STEP, False)


def waiting(zero: Any) -> dict[int, Tensor]:
    """The gradients of partitions whose turn has come before the last one's, by number."""
    found: dict[int, Tensor] = vars(zero).setdefault(_WAITING, {})
    return found
