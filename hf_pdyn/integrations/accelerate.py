"""What we need of accelerate beyond its public API (tried with 1.3 to 1.15)."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer


def unwrap_optimizer(optimizer: Any) -> Optimizer:
    """The innermost torch optimizer behind accelerate's and DeepSpeed's wrappers.

    AcceleratedOptimizer is itself a torch Optimizer, so isinstance does not tell them apart.
    """
    while isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = optimizer.optimizer
    return optimizer


@dataclass
class _LastClip:
    total_norm: Tensor | float
    max_norm: float


_last_clip: _LastClip | None = None


def watch_clipping() -> None:
    """Remember what every later `Accelerator.clip_grad_norm_` call returned. Idempotent.

    The Trainer clips before any callback sees the gradients and passes the norm on to nobody; the
    public method that it calls is the one place to learn it.
    """
    from accelerate import Accelerator

    original = Accelerator.clip_grad_norm_
    if getattr(original, "watched_by_hf_pdyn", False):
        return

    @functools.wraps(original)
    def clip_grad_norm_(self: Any, parameters: Any, max_norm: float, norm_type: float = 2) -> Any:
        global _last_clip
        total_norm = original(self, parameters, max_norm, norm_type=norm_type)
        _last_clip = None if total_norm is None or norm_type != 2 else _LastClip(total_norm, float(max_norm))
        return total_norm

    clip_grad_norm_.watched_by_hf_pdyn = True  # type: ignore[attr-defined]
    Accelerator.clip_grad_norm_ = clip_grad_norm_


def take_clip_factor() -> Tensor | float:
    """By what the gradients of the coming step were multiplied; 1.0 where nothing clipped. Forgets it.

    torch multiplies by min(1, max_norm / (total_norm + 1e-6)). A tensor on the gradients' device where
    the norm was one, so that asking does not synchronise.
    """
    global _last_clip
    clip, _last_clip = _last_clip, None
    if clip is None:
        return 1.0
    factor = clip.max_norm / (clip.total_norm + 1e-6)
    return factor.clamp(max=1.0) if isinstance(factor, Tensor) else min(1.0, factor)
