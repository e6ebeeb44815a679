"""Stages 1 and 2 of ZeRO: every process steps a slice, a partition, of each parameter group.

The partitions are flat tensors, and a step takes one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from hf_pdyn.optim.clipping import note_clip
from hf_pdyn.tensors.sharding import Piece, declare_shard

MODULE, CLASS = "deepspeed.runtime.zero.stage_1_and_2", "DeepSpeedZeroOptimizer"


def why_special(zero: Any) -> str | None:
    """The feature of DeepSpeed that steps partitions in a way of its own; None where none does."""
    special = ("zenflow", "torch_autocast_gradscaler", "has_moe_layers")  # experts: each process has others
    return next((name for name in special if getattr(zero, name, None)), None)


def pieces(zero: Any, model: nn.Module) -> Iterator[tuple[str, int, Piece | None]]:
    """For every parameter that `zero` steps: its name, its group's index, and what of it this process holds."""
    declare(zero)
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
    holder = partitions_of(zero)[group]
    first = dist.get_rank(group=zero.real_dp_process_group[group]) * holder.numel()
    start, stop = max(offset - first, 0), min(offset + numel - first, holder.numel())
    return Piece(holder, start, stop - start) if start < stop else None


def partitions_of(zero: Any) -> list[Tensor]:
    """The partitions of all groups, by number."""
    return zero.single_partition_of_fp32_groups


def step(zero: Any, waited: Sequence[int]) -> None:
    """Step all groups at once; those that waited are done with as ZeRO is after a turn.

    That is to copy their partitions into the model's parameters; the gather over processes comes later.
    """
    declare(zero)
    norm = zero._global_grad_norm
    note_clip(zero.optimizer, 0.0 if norm is None else norm, zero.clip_grad or math.inf)
    zero.optimizer.step()
    zero._lazy_init_hp_params_optimizer_state()
    for i in waited:
        rank = dist.get_rank(group=zero.real_dp_process_group[i])
        zero.parallel_partitioned_bit16_groups[i][rank].data.copy_(partitions_of(zero)[i].data)
        if not zero.cpu_offload:  # its gradients have a buffer of their own that stays
            partitions_of(zero)[i].grad = None


def declare(zero: Any) -> None:
    """Say of every partition how many processes its group is spread over."""
    for partition, group in zip(partitions_of(zero), zero.real_dp_process_group, strict=True):
        declare_shard(partition, dist.get_world_size(group=group))
