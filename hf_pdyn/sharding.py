"""Which part of a parameter this process holds, and how sums over parts become sums over parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

if dist.is_available():
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.tensor import DTensor
else:  # builds without distributed support have none of these

    class DTensor(Tensor):  # type: ignore[no-redef]
        """Stands for a class of which no instance can exist."""

    class FullyShardedDataParallel(nn.Module):  # type: ignore[no-redef]
        """Stands for a class of which no instance can exist."""


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a DTensor, sharing its memory; any other tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_like(tensor: Tensor, param: Tensor) -> Tensor:
    """The part of `tensor` (a gradient, say) that belongs to this process's shard of `param`."""
    if isinstance(tensor, DTensor) and isinstance(param, DTensor) and tensor.placements != param.placements:
        tensor = tensor.redistribute(placements=param.placements)
    return local(tensor)


class Shards:
    """How `params` are spread over the processes of the default group.

    A sum over parameters is the sum over processes of each one's sum over its shards, where what
    several processes hold alike counts once. Nothing is communicated where nothing is sharded.
    """

    def __init__(self, params: Iterable[Tensor]) -> None:
        counts = {param: _shard_count(param) for param in params}
        self.sharded = any(count > 1 for count in counts.values())
        world_size = dist.get_world_size() if self.sharded else 1
        self._shares = {param: count / world_size if self.sharded else 1.0 for param, count in counts.items()}

    def shares(self, params: Sequence[Tensor], like: Tensor) -> Tensor | float:
        """The factor of each parameter's local sums, shape (len(params),), so that `add_up` counts them once."""
        if not self.sharded:
            return 1.0
        return torch.tensor([self._shares[param] for param in params], dtype=like.dtype, device=like.device)

    def add_up(self, sums: Tensor) -> Tensor:
        """The sum of every process's `sums`, by one all-reduce; `sums` itself where nothing is sharded."""
        if self.sharded:
            sums = sums.clone()
            dist.all_reduce(sums)
        return sums


def shards_invisibly(model: nn.Module) -> bool:
    """Whether `model` holds plain tensors that are in truth shards: FSDP1, whose sums we cannot add up."""
    return any(isinstance(module, FullyShardedDataParallel) for module in model.modules())


def _shard_count(param: Tensor) -> int:
    if not isinstance(param, DTensor):
        return 1
    sizes = zip(param.placements, param.device_mesh.shape, strict=True)
    return math.prod(size for placement, size in sizes if placement.is_shard())


def agreed(values: Sequence[float], device: torch.device) -> list[float]:
    """Rank 0's `values` on every process, so that all of them decide alike; `values` without a process group."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return list(values)
    shared = torch.tensor(values, device=device, dtype=torch.float32 if device.type == "mps" else torch.float64)
    dist.broadcast(shared, src=0)
    return shared.tolist()
