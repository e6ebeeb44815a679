"""What the stages of ZeRO share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def joining(
    original: Callable[..., None],
    *,
    why_special: Callable[[Any], str | None],
    partitions_of: Callable[[Any], Sequence[Tensor]],
    step: Callable[[Any, Sequence[int]], None],
) -> Callable[..., None]:
    """ZeRO's `_optimizer_step(number)`, which makes the step of all partitions with the last one's turn.

    ZeRO forgets a partition's gradient right after its turn, so those of the partitions that wait are kept until then.

    Args:
        original: what steps one partition.
        why_special: why these partitions cannot be stepped at once; None where they can.
        partitions_of: all partitions, by number.
        step: `step(zero, waited)` steps all, and does for those that waited what ZeRO did after their turn.
    """

    def _optimizer_step(self: Any, number: int) -> None:
        if why_special(self) or not wants_one_step(self.optimizer):
            original(self, number)
            return
        partitions = partitions_of(self)
        waiting: dict[int, Any] = vars(self).setdefault(_WAITING, {})
        if number < len(partitions) - 1:
            waiting[number] = partitions[number].grad
            return
        for i, grad in waiting.items():
            partitions[i].grad = grad
        step(self, list(waiting))
        waiting.clear()

    return _optimizer_step
