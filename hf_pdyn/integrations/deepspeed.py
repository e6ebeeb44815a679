"""What we need of DeepSpeed beyond its public API (tried with 0.19.8). Nothing here imports it.

ZeRO 1 and 2 flatten each parameter group, give every process one slice of it, a partition, and step the
partitions one after the other.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from hf_pdyn.integrations import patches
from hf_pdyn.integrations.accelerate import unwrap_optimizer, wrappers
from hf_pdyn.optim.clipping import note_clip
from hf_pdyn.optim.padam import Padam
from hf_pdyn.tensors.sharding import Piece, declare_shard

_ONE_STEP = "one_step_for_all_groups"
_WAITING = "_hf_pdyn_gradients"

_NO_REPLACEMENT = (
    "With ZeRO's offload_optimizer, accelerate replaces Padam by DeepSpeedCPUAdam, which has no exponent p. Set "
    '"zero_force_ds_cpu_optimizer": false in the DeepSpeed config: Padam then steps the offloaded state on the CPU.'
)


def zero_optimizer(optimizer: Any) -> Any | None:
    """The ZeRO 1 or 2 optimizer among the wrappers of `optimizer`, if there is one."""
    zero_class = _zero_class()
    return next((w for w in wrappers(optimizer) if zero_class is not None and isinstance(w, zero_class)), None)


def why_unreadable(optimizer: Any) -> str | None:
    """Why gradients cannot be read where DeepSpeed steps `optimizer`; None where they can, or without it."""
    if type(optimizer).__name__ != "DeepSpeedOptimizerWrapper":  # accelerate's
        return None
    zero = zero_optimizer(optimizer)
    if zero is None:
        return (
            f"DeepSpeed steps with its {type(optimizer.optimizer).__name__}, and only ZeRO stages 1 and 2 can be "
            "read (stage 1 in bf16 without grad_accum_dtype fp32); use one of these, DDP or FSDP2"
        )
    special = _special(zero)
    return f"DeepSpeed's {special} steps in a way of its own; switch it off" if special else None


def want_one_step_for_all_groups(optimizer: Any) -> None:
    """Have ZeRO 1 and 2 call this (inner) optimizer's `step` once for all groups, and note the clipping.

    Of a step per group nobody can tell where a training step begins or how its gradients were clipped,
    and an update that is matched in size needs them all.
    """
    setattr(optimizer, _ONE_STEP, True)
    if _zero_class() is not None:
        patches.ZERO_OPTIMIZER_STEP.replace(_joining)


def keep_padam_where_it_is_offloaded() -> None:
    """Have accelerate refuse to put DeepSpeedCPUAdam in Padam's place, as it does where ZeRO offloads the optimizer."""
    if _zero_class() is not None:
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


def zero_pieces(zero: Any, model: nn.Module) -> Iterator[tuple[str, int, Piece | None]]:
    """For every parameter that `zero` steps: its name, its group's index, and what of it this process holds.

    In the order of `model.named_parameters()`, hence the same on every process.
    """
    _declare_partitions(zero)
    places = {param: (i, offset) for i in range(len(zero.bit16_groups)) for param, offset in _flattened(zero, i)}
    for name, param in model.named_parameters():
        if param in places:
            group, offset = places[param]
            yield name, group, _piece(zero, group, offset, param.numel())


def _flattened(zero: Any, group: int) -> Iterator[tuple[Tensor, int]]:
    """The parameters of a group and where each begins in the group's flat tensor.

    Not from `param._hp_mapping`, which is of another order where `round_robin_gradients` is on (0.19.8).
    """
    params = zero.round_robin_bit16_groups[group]
    offsets = getattr(zero, "round_robin_bit16_offsets", None)  # 0.19 pads between parameters
    if offsets is not None:
        yield from zip(params, offsets[group], strict=True)
        return
    yield from zip(params, accumulate((param.numel() for param in params), initial=0), strict=False)


def _piece(zero: Any, group: int, offset: int, numel: int) -> Piece | None:
    holder: Tensor = zero.single_partition_of_fp32_groups[group]
    first = dist.get_rank(group=zero.real_dp_process_group[group]) * holder.numel()
    start, stop = max(offset - first, 0), min(offset + numel - first, holder.numel())
    return Piece(holder, start, stop - start) if start < stop else None


def _zero_class() -> type[Any] | None:
    """DeepSpeed's class for both stages, where DeepSpeed is loaded."""
    module = sys.modules.get("deepspeed.runtime.zero.stage_1_and_2")
    return None if module is None else module.DeepSpeedZeroOptimizer


def _joining(original: Callable[..., None]) -> Callable[..., None]:
    def _optimizer_step(self: Any, group_no: int) -> None:
        if _special(self) or not getattr(self.optimizer, _ONE_STEP, False):
            original(self, group_no)
        else:
            _step_with_the_last_group(self, group_no)

    return _optimizer_step


def _step_with_the_last_group(zero: Any, group_no: int) -> None:
    """What ZeRO does for one group, for all at once when the last one's turn has come.

    ZeRO forgets a group's gradient right after its turn and copies its partition into the model's
    parameters; for groups that waited, both are done here. The gather over processes comes later.
    """
    partitions: list[Tensor] = zero.single_partition_of_fp32_groups
    waiting: dict[int, Tensor] = vars(zero).setdefault(_WAITING, {})
    if group_no < len(partitions) - 1:
        waiting[group_no] = partitions[group_no].grad  # type: ignore[assignment]
        return
    for i, grad in waiting.items():
        partitions[i].grad = grad
    _declare_partitions(zero)
    norm = zero._global_grad_norm
    note_clip(zero.optimizer, 0.0 if norm is None else norm, zero.clip_grad or math.inf)
    zero.optimizer.step()
    zero._lazy_init_hp_params_optimizer_state()
    for i in waiting:
        rank = dist.get_rank(group=zero.real_dp_process_group[i])
        zero.parallel_partitioned_bit16_groups[i][rank].data.copy_(partitions[i].data)
        if not zero.cpu_offload:  # its gradients have a buffer of their own that stays
            partitions[i].grad = None
    waiting.clear()


def _declare_partitions(zero: Any) -> None:
    for partition, group in zip(zero.single_partition_of_fp32_groups, zero.real_dp_process_group, strict=True):
        declare_shard(partition, dist.get_world_size(group=group))


def _special(zero: Any) -> str | None:
    special = ("zenflow", "torch_autocast_gradscaler", "has_moe_layers")  # experts: each process has others
    return next((name for name in special if getattr(zero, name, None)), None)
