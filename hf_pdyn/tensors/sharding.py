"""Which part of a parameter this process holds, and how sums over parts become sums over parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from hf_pdyn.tensors.norms import accumulator_dtype

if dist.is_available():
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.tensor import DTensor
else:  # builds without distributed support have none of these

    class DTensor(Tensor):  # type: ignore[no-redef]
        """Stands for a class of which no instance can exist."""

    class FullyShardedDataParallel(nn.Module):  # type: ignore[no-redef]
        """Stands for a class of which no instance can exist."""


T = TypeVar("T")

_SHARD_COUNT, _HELD = "_hf_pdyn_shard_count", "_hf_pdyn_held"


@dataclass(frozen=True, eq=False)
class Piece:
    """What this process holds of one of the model's parameters, as the optimizer sees it.

    holder: the tensor that is stepped: the parameter itself, or a flat one that holds many (DeepSpeed ZeRO).
    start, numel: where the parameter's elements lie in a flat holder; None for the whole of it.
    """

    holder: Tensor
    start: int | None = None
    numel: int | None = None

    def of(self, values: Tensor) -> Tensor:
        """This piece of `values`, which lie as `local(holder)` does: a gradient, an update, a moment. A view."""
        if self.start is None or self.numel is None:
            return values
        return values.view(-1).narrow(0, self.start, self.numel)


def declare_held(optimizer: Optimizer, params: list[list[Tensor]]) -> None:
    """Say what the groups of `optimizer` hold, of which a launcher leaves them empty between steps."""
    setattr(optimizer, _HELD, params)


def held(optimizer: Optimizer) -> list[list[Tensor]]:
    """The parameters of each group of an (innermost) optimizer, during a step and between steps."""
    declared: list[list[Tensor]] | None = getattr(optimizer, _HELD, None)
    return [group["params"] for group in optimizer.param_groups] if declared is None else declared


def group_by_param(optimizer: Optimizer) -> dict[Tensor, dict[str, Any]]:
    """The group of every parameter that an (innermost) optimizer steps."""
    pairs = zip(optimizer.param_groups, held(optimizer), strict=True)
    return {param: group for group, params in pairs for param in params}


def first_param(optimizer: Optimizer) -> Tensor:
    """A parameter of an (innermost) optimizer, whose first group may be empty: the Trainer's is where biases train."""
    return next(param for params in held(optimizer) for param in params)


def is_dtensor(tensor: Tensor) -> bool:
    """Whether this process holds a part of `tensor`, and its class says which."""
    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a DTensor, sharing its memory; any other tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_like(tensor: Tensor, param: Tensor) -> Tensor:
    """The part of `tensor` (a gradient, say) that belongs to this process's shard of `param`."""
    if isinstance(tensor, DTensor) and isinstance(param, DTensor) and tensor.placements != param.placements:
        tensor = tensor.redistribute(placements=param.placements)
    return local(tensor)


def start_of(tensor: Tensor) -> int:
    """Where in the whole of a DTensor, as its elements lie in a row, this process's shard begins; 0 for others."""
    if not isinstance(tensor, DTensor):
        return 0
    return _start_of(tuple(tensor.shape), tensor.device_mesh, tuple(tensor.placements))


@cache
def _start_of(shape: tuple[int, ...], mesh: Any, placements: tuple[Any, ...]) -> int:
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, offset = compute_local_shape_and_global_offset(shape, mesh, placements)
    return sum(first * math.prod(shape[i + 1 :]) for i, first in enumerate(offset))


def whole(tensor: Tensor) -> Tensor:
    """All of a DTensor, detached, which every process of its mesh must ask for; any other tensor itself, detached."""
    tensor = tensor.detach()
    if not isinstance(tensor, DTensor):
        return tensor
    # Shards that are offloaded to the CPU cannot be sent from there by the mesh of an accelerator.
    on_mesh: DTensor = tensor.to(tensor.device_mesh.device_type)  # type: ignore[assignment]
    return on_mesh.full_tensor()


def has_fsdp1(model: nn.Module) -> bool:
    """Whether FSDP1 wraps `model` or a part of it: its parameters are flat between passes."""
    return any(isinstance(module, FullyShardedDataParallel) for module in model.modules())


def declare_shard(tensor: Tensor, processes: int) -> None:
    """Say that `tensor`, although no DTensor, is a shard of something spread over so many processes."""
    setattr(tensor, _SHARD_COUNT, processes)


def declare_fsdp1_shards(model: nn.Module) -> None:
    """Declare the parameters of FSDP1 (torch 2.13): with use_orig_params they are plain 1-D tensors."""
    for module in FullyShardedDataParallel.fsdp_modules(model) if dist.is_available() else ():
        handle = module._handle
        if handle is not None and handle.uses_sharded_strategy:
            for param in handle.flat_param._params or ():  # None without use_orig_params
                declare_shard(param, dist.get_world_size(handle.process_group))


def is_known_shard(tensor: Tensor) -> bool:
    """Whether `tensor` is a DTensor or declared to be a shard."""
    return isinstance(tensor, DTensor) or hasattr(tensor, _SHARD_COUNT)


def is_partial(tensor: Tensor) -> bool:
    """Whether `tensor` is a DTensor that is not yet added up over its processes."""
    return isinstance(tensor, DTensor) and any(placement.is_partial() for placement in tensor.placements)


class Shards:
    """How `params` are spread over the processes of the default group.

    A sum over parameters is the sum over processes of each one's sum over its shards, where what
    several processes hold alike counts once. Nothing is communicated where nothing is sharded. Give it
    all parameters of an optimizer: whether anything is sharded must be answered alike by every process,
    also by one that holds nothing of what is.
    """

    def __init__(self, params: Iterable[Tensor]) -> None:
        counts = {id(param): _shard_count(param) for param in params}  # to hash a tensor takes longer
        self.sharded = any(map((1).__lt__, counts.values()))
        self._world_size = dist.get_world_size() if self.sharded else 1
        self._counts = counts

    def share(self, param: Tensor) -> float:
        """The factor of sums over this process's part of `param`, so that `add_up` counts them once."""
        return self._counts[id(param)] / self._world_size if self.sharded else 1.0

    def share_of_square(self, norm: Tensor) -> Tensor:
        """This process's share of the square of `norm`, whose `add_up` is the square; communicates nothing.

        `norm`: 0-d, the same on every process, or the DTensor that torch's clipping returns, still
        partial over a mesh.
        """
        count = 1
        if isinstance(norm, DTensor):
            sizes = zip(norm.placements, norm.device_mesh.shape, strict=True)
            count = math.prod(size for placement, size in sizes if placement.is_partial())
            norm = norm.to_local()
        return norm.detach().to(accumulator_dtype(norm.device)).square() * (count / self._world_size)

    def add_up(self, sums: Tensor) -> Tensor:
        """The sum of every process's `sums`, by one all-reduce; `sums` itself where nothing is sharded."""
        if not self.sharded:
            return sums
        total = sums.to(_communication_device(sums.device), copy=True)
        dist.all_reduce(total)
        return total.to(sums.device)


def agreed(values: Sequence[float], device: torch.device) -> list[float]:
    """Rank 0's `values` on every process, so that all of them decide alike; `values` without a process group."""
    if _process_count() == 1:
        return list(values)
    device = _communication_device(device)
    shared = torch.tensor(values, device=device, dtype=accumulator_dtype(device))
    dist.broadcast(shared, src=0)
    return shared.tolist()


def own_share(items: Sequence[T]) -> list[T]:
    """What of `items` (at least one) this process takes, in turn with the others and as many as each of them.

    Where they do not come out even, several have the last item.
    """
    processes = _process_count()
    missing = -len(items) % processes
    padded = [*items, *[items[-1]] * missing]
    return padded[dist.get_rank() :: processes] if processes > 1 else padded


def gathered(value: T) -> list[T]:
    """Every process's `value` by rank, on all of them; `[value]` without a process group.

    They are pickled, and a tensor's device would be another process's: give numbers, text or numpy arrays.
    """
    if _process_count() == 1:
        return [value]
    values: list[Any] = [None] * _process_count()
    dist.all_gather_object(values, value)
    return values


def _process_count() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _shard_count(param: Tensor) -> int:
    if not isinstance(param, DTensor):
        return getattr(param, _SHARD_COUNT, 1)
    # Not is_shard(): of FSDP2 over tensor parallelism, _StridedShard is none (torch 2.13).
    sizes = zip(param.placements, param.device_mesh.shape, strict=True)
    return math.prod(size for placement, size in sizes if not placement.is_replicate())


def _communication_device(device: torch.device) -> torch.device:
    """`device`, or one that the default group can send from: NCCL knows no CPU tensors, which offloading has."""
    known = [pair.partition(":")[0] for pair in dist.get_backend_config().split(",")]
    return device if device.type in known else torch.device(known[0])
