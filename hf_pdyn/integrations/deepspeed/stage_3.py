"""Stage 3 of ZeRO: every process has a slice of every parameter.

The slices of some parameters of one group, a sub-group, are one flat float32 tensor, a partition. A step takes the
sub-groups one after the other; between steps the inner optimizer's groups have no parameters.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hf_pdyn.optim.clipping import note_clip
from hf_pdyn.tensors.sharding import Piece, declare_held, declare_shard, held

_READ = (
    "fp16_groups",
    "fp32_partitioned_groups_flat",
    "sub_group_to_group_id",
    "clip_grad",
    "_optimizer_step",
    "_reassign_or_swap_out_partitioned_parameters",
)

MODULE, CLASS = "deepspeed.runtime.zero.stage3", "DeepSpeedZeroOptimizer_Stage3"


def why_special(zero: Any) -> str | None:
    """The feature of DeepSpeed that steps sub-groups in a way of its own; None where none does."""
    if getattr(zero, "swap_optimizer", False) or getattr(zero, "params_in_nvme_and_cpu", False):
        return "offload to NVMe"
    if getattr(zero, "offload_optimizer", False) and getattr(zero, "partial_offload", 1.0) < 1:
        return "partial offload (offload_optimizer.ratio)"
    special = ("zenflow", "torch_autocast_gradscaler", "use_muon")
    used = next((name for name in special if getattr(zero, name, None)), None)
    moved = next((name for name in _READ if not hasattr(zero, name)), None)
    return used or (f"version, in which {type(zero).__name__} has no {moved}," if moved else None)


def pieces(zero: Any, model: nn.Module) -> Iterator[tuple[str, int, Piece | None]]:
    """For every parameter that `zero` steps: its name, its group's index, and what of it this process holds.

    The last processes' slices may hold padding, or nothing else.
    """
    declare(zero)
    places: dict[Tensor, tuple[int, Piece | None]] = {}
    for i, params in enumerate(zero.fp16_groups):
        rank = dist.get_rank(group=_process_group(zero, i))
        start = 0
        for param in params:
            size = param.partition_numel()
            own = min(max(param.ds_numel - rank * size, 0), size)
            piece = Piece(partitions_of(zero)[i], start, own) if own else None
            places[param] = zero.sub_group_to_group_id[i], piece
            start += size
    for name, param in model.named_parameters():
        if param in places:
            yield name, *places[param]


def is_partitioned(tensor: Tensor) -> bool:
    """Whether `tensor` is a parameter of which each process has a slice."""
    return hasattr(tensor, "ds_tensor")


def full_shape(tensor: Tensor) -> torch.Size:
    """The shape that a parameter has as a whole: one that is partitioned has none of its elements between passes."""
    return getattr(tensor, "ds_shape", tensor.shape)


def gathered(tensor: Tensor) -> Tensor:
    """All of a partitioned parameter, detached, which every process must ask for."""
    with sys.modules["deepspeed"].zero.GatheredParameters([tensor]):
        return tensor.detach().clone()


def partitions_of(zero: Any) -> list[Tensor]:
    """The partitions of all sub-groups, by number."""
    return zero.fp32_partitioned_groups_flat


def step(zero: Any, waited: Sequence[int]) -> None:
    """Step all sub-groups at once; those that waited are done with as ZeRO is after a turn.

    Until here a float32 copy of this process's slices of the gradients was kept, unless they are offloaded.
    """
    declare(zero)
    note_clip(zero.optimizer, zero._global_grad_norm, zero.clip_grad or math.inf)
    groups = zero.optimizer.param_groups
    for group, params in zip(groups, held(zero.optimizer), strict=True):
        group["params"] = params
    try:
        zero.optimizer.step()
    finally:
        for group in groups:
            group["params"] = []
    for i in waited:
        zero._reassign_or_swap_out_partitioned_parameters(i)
        if not zero.offload_optimizer:  # its gradients have a buffer of their own that stays
            partitions_of(zero)[i].grad = None


def declare(zero: Any) -> None:
    """Say of every partition how many processes its parameters are spread over, and which groups hold it."""
    for i, partition in enumerate(partitions_of(zero)):
        declare_shard(partition, dist.get_world_size(group=_process_group(zero, i)))
    by_group: list[list[Tensor]] = [[] for _ in zero.optimizer.param_groups]
    for i, partition in enumerate(partitions_of(zero)):
        by_group[zero.sub_group_to_group_id[i]].append(partition)
    declare_held(zero.optimizer, by_group)


def _process_group(zero: Any, sub_group_id: int) -> Any:
    # 0.17 and earlier have one for all.
    of_sub_group = getattr(zero, "_get_sub_group_process_group", None)
    return zero.dp_process_group if of_sub_group is None else of_sub_group(sub_group_id)
