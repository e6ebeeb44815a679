"""How the gradients of the coming step were clipped: noted where it happens, taken where it is needed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from torch import Tensor
from torch.optim import Optimizer


@dataclass(frozen=True)
class Clip:
    """Gradients of L2 norm `total_norm` were scaled by min(1, max_norm / (total_norm + 1e-6)), as torch does.

    total_norm: a number, or a 0-d tensor; from FSDP2 a DTensor that is not yet added up over processes.
    """

    total_norm: Tensor | float = 0.0
    max_norm: float = math.inf


def clip_factor(total_norm: Tensor, max_norm: Tensor | float) -> Tensor:
    """By what clipping multiplied the gradients, element by element."""
    return (max_norm / (total_norm + 1e-6)).clamp(max=1.0)


UNCLIPPED = Clip()

_noted: WeakKeyDictionary[Optimizer, Clip] = WeakKeyDictionary()


def note_clip(optimizer: Optimizer, total_norm: Tensor | float, max_norm: float) -> None:
    """Remember how the gradients of the coming step of `optimizer` were clipped."""
    if isinstance(total_norm, Tensor):
        total_norm = total_norm.detach()
    _noted[optimizer] = Clip(total_norm, float(max_norm))


def take_clip(optimizer: Optimizer) -> Clip:
    """How the gradients were clipped, by nothing if nobody noted it; the next step begins without a note."""
    return _noted.pop(optimizer, UNCLIPPED)
