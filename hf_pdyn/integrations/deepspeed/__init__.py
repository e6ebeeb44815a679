"""What we need of DeepSpeed beyond its public API (tried with 0.19.8). Nothing here imports it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any

from torch import nn

from hf_pdyn.integrations import patches
from hf_pdyn.integrations.accelerate import unwrap_optimizer, wrappers
from hf_pdyn.integrations.deepspeed import stage_3, stages_1_and_2
from hf_pdyn.integrations.deepspeed.common import joining, want_one_step
from hf_pdyn.integrations.deepspeed.stage_3 import full_shape, gathered, is_partitioned
from hf_pdyn.optim.padam import Padam
from hf_pdyn.tensors.sharding import Piece

__all__ = [
    "check_not_replaced",
    "declare_partitions",
    "full_shape",
    "gathered",
    "is_partitioned",
    "keep_padam_where_it_is_offloaded",
    "want_one_step_for_all_groups",
    "why_unreadable",
    "zero_optimizer",
    "zero_pieces",
]

_STAGES = {stages_1_and_2: patches.ZERO_OPTIMIZER_STEP, stage_3: patches.ZERO_3_OPTIMIZER_STEP}

_NO_REPLACEMENT = (
    "With ZeRO's offload_optimizer, accelerate replaces Padam by DeepSpeedCPUAdam, which has no exponent p. Set "
    '"zero_force_ds_cpu_optimizer": false in the DeepSpeed config: Padam then steps the offloaded state on the CPU.'
)


def zero_optimizer(optimizer: Any) -> Any | None:
    """The ZeRO optimizer among the wrappers of `optimizer`, if there is one."""
    return next((wrapper for wrapper in wrappers(optimizer) if _stage_of(wrapper) is not None), None)


def why_unreadable(optimizer: Any) -> str | None:
    """Why gradients cannot be read where DeepSpeed steps `optimizer`; None where they can, or without it."""
    if type(optimizer).__name__ != "DeepSpeedOptimizerWrapper":  # accelerate's
        return None
    zero = zero_optimizer(optimizer)
    if zero is None:
        return (
            f"DeepSpeed steps with its {type(optimizer.optimizer).__name__}, and only ZeRO can be read (stage 1 in "
            "bf16 without grad_accum_dtype fp32); use it, DDP or FSDP2"
        )
    stage = _stage_of(zero)
    assert stage is not None
    special = stage.why_special(zero)
    return f"DeepSpeed's {special} steps in a way of its own; switch it off, or use DDP or FSDP2" if special else None


def want_one_step_for_all_groups(optimizer: Any) -> None:
    """Have ZeRO call this (inner) optimizer's `step` once for all groups, and note the clipping.

    Of a step per group nobody can tell where a training step begins or how its gradients were clipped,
    and an update that is matched in size needs them all.
    """
    want_one_step(optimizer)
    for stage, patch in _STAGES.items():
        if stage.MODULE in sys.modules:
            patch.replace(
                partial(
                    joining,
                    why_special=stage.why_special,
                    partitions_of=stage.partitions_of,
                    step=stage.step,
                )
            )


def keep_padam_where_it_is_offloaded() -> None:
    """Have accelerate refuse to put DeepSpeedCPUAdam in Padam's place, as it does where ZeRO offloads the optimizer."""
    if stages_1_and_2.MODULE in sys.modules:
        patches.OFFLOADED_OPTIMIZER.replace(_refusing)


def _refusing(original: Callable[..., Any]) -> Callable[..., Any]:
    def map_pytorch_optim_to_deepspeed(optimizer: Any) -> Any:
        if isinstance(optimizer, Padam):
            raise ValueError(_NO_REPLACEMENT)
        return original(optimizer)

    return map_pytorch_optim_to_deepspeed


def check_not_replaced(optimizer: Any) -> None:
    """ValueError where DeepSpeedCPUAdam steps the parameter groups of a Padam: their p does nothing there."""
    innermost = unwrap_optimizer(optimizer)
    if type(innermost).__name__ == "DeepSpeedCPUAdam" and "p" in innermost.param_groups[0]:
        raise ValueError(_NO_REPLACEMENT)


def declare_partitions(optimizer: Any) -> None:
    """Say of what ZeRO steps how it is spread over processes, and which groups hold it between steps."""
    zero = zero_optimizer(optimizer)
    stage = None if zero is None else _stage_of(zero)
    if stage is not None and stage.why_special(zero) is None:
        stage.declare(zero)


def zero_pieces(zero: Any, model: nn.Module) -> Iterator[tuple[str, int, Piece | None]]:
    """For every parameter that `zero` steps: its name, its group's index, and what of it this process holds.

    In the order of `model.named_parameters()`, hence the same on every process.
    """
    stage = _stage_of(zero)
    assert stage is not None
    yield from stage.pieces(zero, model)


def _stage_of(zero: Any) -> ModuleType | None:
    """The module about the class of a ZeRO optimizer; None for anything else."""
    for stage in _STAGES:
        loaded = sys.modules.get(stage.MODULE)
        if loaded is not None and isinstance(zero, getattr(loaded, stage.CLASS, ())):
            return stage
    return None
