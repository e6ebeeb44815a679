"""What we need of accelerate beyond its public API (tried with 1.3 to 1.15)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch.optim import Optimizer

from hf_pdyn.integrations import patches
from hf_pdyn.optim.clipping import note_clip


def wrappers(optimizer: Any) -> Iterator[Any]:
    """`optimizer` and what it wraps, from the outside in: accelerate's, DeepSpeed's, torch's own.

    AcceleratedOptimizer is itself a torch Optimizer and DeepSpeed's are not, so isinstance tells nothing.
    """
    yield optimizer
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
        yield optimizer


def unwrap_optimizer(optimizer: Any) -> Optimizer:
    """The innermost torch optimizer behind accelerate's and DeepSpeed's wrappers."""
    *_, innermost = wrappers(optimizer)
    return innermost


def unwrap_scheduler(scheduler: Any) -> Any:
    """The innermost learning rate scheduler behind accelerate's wrapper."""
    while hasattr(scheduler, "scheduler"):
        scheduler = scheduler.scheduler
    return scheduler


def step_was_skipped(optimizer: Any) -> bool:
    """Whether the last step was left out: by a gradient scaler, as accelerate tells, or by Padam itself."""
    return any(getattr(wrapper, "step_was_skipped", False) for wrapper in wrappers(optimizer))


def has_gradient_scaler(optimizer: Any) -> bool:
    """Whether a gradient scaler decides which steps of it are taken."""
    return any(getattr(wrapper, "scaler", None) is not None for wrapper in wrappers(optimizer))


def watch_clipping() -> None:
    """Note what every later `Accelerator.clip_grad_norm_` call did to the optimizers it concerns. Idempotent.

    The Trainer clips before any callback sees the gradients and passes the norm on to nobody; the
    public method that it calls is the one place to learn it. Under DeepSpeed that only reports on the step
    which the engine has made already.
    """
    from accelerate.utils import DistributedType

    def noting(original: Callable[..., Any]) -> Callable[..., Any]:
        def clip_grad_norm_(self: Any, parameters: Any, max_norm: float, norm_type: float = 2) -> Any:
            parameters = list(parameters)
            total_norm = original(self, parameters, max_norm, norm_type=norm_type)
            if total_norm is not None and norm_type == 2 and self.distributed_type != DistributedType.DEEPSPEED:
                clipped = {id(parameter) for parameter in parameters}
                for optimizer in map(unwrap_optimizer, self._optimizers):
                    if any(id(param) in clipped for group in optimizer.param_groups for param in group["params"]):
                        note_clip(optimizer, total_norm, max_norm)
            return total_norm

        return clip_grad_norm_

    patches.CLIP_GRAD_NORM.replace(noting)
