"""The fused step in Triton, which comes with torch's builds for GPUs and compiles at a kernel's first launch.

All tensors that one compiled kernel takes are one launch: a table holds their addresses, another cuts them into chunks.
Tables go to the device without waiting for it, and only when they differ from one that is there.
"""

from __future__ import annotations

import importlib.util
import math
from array import array
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import nullcontext
from functools import cache, lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_pdyn.optim.fused.layout import COLUMNS, addresses_of, row, rows_of
from hf_pdyn.optim.step_work import STEP_SUMS, Task, Update, group_lr

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NEEDS = "Triton, with the driver and the C compiler that it calls"

_VECTOR = 16
"""Bytes of a vector load: what addresses must be multiples of; and elements, of which sizes must be."""

_MANY_TABLES = 64


def why_not_here() -> str | None:
    """Why there can be no fused step on this machine's GPUs."""
    if importlib.util.find_spec("triton") is None:
        return "on GPUs it is written in Triton, which is not installed (pip install triton)"
    if torch.version.hip is None and torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        if major < 8:  # Triton 3.2 cannot compile bf16 for them
            return f"it needs GPUs of compute capability 8.0 at least, this is one of {major}.{minor}"
    return None


def prepare() -> None:
    """Compile and launch both kernels: it fails where anything that Triton calls is missing, or cannot compile them."""
    device = torch.device("cuda", torch.cuda.current_device())
    advance([_example(device)], Task.MOMENTS | Task.APPLY | Task.GRADIENT | Task.MEASURE | Task.PARAMETER)


def _example(device: torch.device) -> Update:
    group = {
        "lr": 0.0,
        "betas": (0.9, 0.999),
        "eps": 1e-16,
        "p": 0.5,
        "weight_decay": 0.0,
        "decoupled_weight_decay": True,
        "maximize": False,
    }
    theta, grad, exp_avg, exp_avg_sq = (torch.zeros(_VECTOR, device=device) for _ in range(4))
    return Update(group, theta, theta, grad, exp_avg, exp_avg_sq, None, 1.0)


class _Variant(NamedTuple):
    """What a kernel is compiled for, besides the tasks."""

    theta_type: torch.dtype
    grad_type: torch.dtype
    amsgrad: bool
    times_on_device: bool
    aligned: bool


_variant_of = cache(_Variant)


def variant(update: Update) -> _Variant:
    """What the kernel that takes `update` is compiled for."""
    theta, grad, exp_avg, exp_avg_sq, maximum = update.addresses or addresses_of(update)
    together = theta | grad | exp_avg | exp_avg_sq | maximum | update.theta.numel()
    return _variant_of(
        update.theta.dtype,
        update.grad.dtype,
        update.max_exp_avg_sq is not None,
        isinstance(update.t, Tensor),
        not together % _VECTOR,
    )


def advance(
    updates: Sequence[Update], tasks: Task, *, scale: Tensor | None = None, clip_factor: Tensor | None = None
) -> Tensor:
    """An `Advance`; the sums stand on the device, and nothing waits for it."""
    device = updates[0].theta.device
    alike: dict[_Variant, list[int]] = {}
    for i, update in enumerate(updates):
        alike.setdefault(update.variant or variant(update), []).append(i)
    scale, clip_factor = (
        None if value is None else value.to(device=device, dtype=torch.float32) for value in (scale, clip_factor)
    )
    sums = torch.zeros(len(updates), len(STEP_SUMS), dtype=torch.float64, device=device)
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        for kind, rows in alike.items():
            part = updates if len(alike) == 1 else [updates[i] for i in rows]
            _launch(kind, part, tasks, scale, clip_factor, sums, tuple(rows))
    return sums


def _launch(
    kind: _Variant,
    updates: Sequence[Update],
    tasks: Task,
    scale: Tensor | None,
    clip_factor: Tensor | None,
    sums: Tensor,
    rows: tuple[int, ...],
) -> None:
    """Do `tasks` for updates of one variant; `rows` of `sums` are theirs."""
    from hf_pdyn.optim.fused import triton_kernels

    device, numels = sums.device, tuple([update.theta.numel() for update in updates])
    n_chunks = _count_chunks(numels)
    if not n_chunks:
        return
    settings = rows_of(updates)
    rates = [_rate_on_device(group, device) for group, _ in settings.keys]
    lr_at = [0 if rate is None else rate.data_ptr() for rate in rates]
    runs: list[int] = []
    for update, numel, number in zip(updates, numels, settings.of_update, strict=True):
        runs += update.addresses or addresses_of(update)
        runs += (update.t.data_ptr() if kind.times_on_device else 0, lr_at[number], numel, number)
    constants = [value for group, t in settings.keys for value in _settings(group, t)]
    summing = bool(tasks & ~(Task.MOMENTS | Task.APPLY))
    chunk_sums = torch.zeros(n_chunks if summing else 0, len(STEP_SUMS), dtype=torch.float32, device=device)
    triton_kernels.step_chunk[(n_chunks,)](
        _of_bytes(array("q", runs).tobytes(), torch.int64, device),
        _tables.get(("chunks", numels), partial(_chunks, numels), device),
        _of_bytes(array("f", constants).tobytes(), torch.float32, device),
        scale,
        clip_factor,
        chunk_sums,
        theta_type=_triton(kind.theta_type),
        grad_type=_triton(kind.grad_type),
        amsgrad=kind.amsgrad,
        times_on_device=kind.times_on_device,
        aligned=kind.aligned,
        moments=bool(tasks & Task.MOMENTS),
        apply=bool(tasks & Task.APPLY),
        gradient=bool(tasks & Task.GRADIENT),
        direction=bool(tasks & Task.DIRECTION),
        measure=bool(tasks & Task.MEASURE),
        parameter=bool(tasks & Task.PARAMETER),
        num_warps=8,
        enable_fp_fusion=True,  # Triton 3.9 warns where it is left to a default that is to change
    )
    if summing:
        ends = _tables.get(("ends", numels, rows), partial(_ends, numels, rows), device)
        _add_chunks(chunk_sums, ends, sums)


def _add_chunks(chunk_sums: Tensor, ends: Tensor, sums: Tensor) -> None:
    from hf_pdyn.optim.fused import triton_kernels

    grid = (len(ends), len(STEP_SUMS))
    triton_kernels.add_chunks[grid](chunk_sums, ends, sums, tile=1024, enable_fp_fusion=True)


@cache
def _triton(dtype: torch.dtype) -> Any:
    import triton.language as tl

    return getattr(tl, str(dtype).removeprefix("torch."))


def _settings(group: Any, t: Any) -> tuple[float, ...]:
    on_device = isinstance(t, Tensor)
    lr = group_lr(group)
    log_betas = (math.log(beta) if beta else -math.inf for beta in group["betas"])
    values = row(group, 1.0 if on_device else t, 0.0 if isinstance(lr, Tensor) else lr)
    assert len(values) == len(COLUMNS)
    return (*values, *log_betas)


def _rate_on_device(group: Mapping[str, Any], device: torch.device) -> Tensor | None:
    lr = group_lr(group)
    return lr.to(device=device, dtype=torch.float32) if isinstance(lr, Tensor) else None


def _chunks_of(numel: int) -> int:
    from hf_pdyn.optim.fused.triton_kernels import CHUNK

    return -(-numel // CHUNK.value)


@lru_cache(maxsize=_MANY_TABLES)
def _count_chunks(numels: tuple[int, ...]) -> int:
    return sum(_chunks_of(numel) for numel in numels)


def _chunks(numels: Sequence[int]) -> Tensor:
    """(tensor, number within it) of every chunk; on the CPU, int32."""
    counts = torch.tensor([_chunks_of(numel) for numel in numels], device="cpu")
    tensors = torch.repeat_interleave(torch.arange(len(numels), device="cpu"), counts)
    within = torch.arange(len(tensors), device="cpu") - (counts.cumsum(0) - counts)[tensors]
    return torch.stack([tensors, within], dim=1).int()


def _ends(numels: Sequence[int], rows: Sequence[int]) -> Tensor:
    """Of each tensor, its first chunk, the one after its last, and its row of the sums; on the CPU."""
    counts = torch.tensor([_chunks_of(numel) for numel in numels], device="cpu")
    stops = counts.cumsum(0)
    return torch.stack([stops - counts, stops, torch.tensor(rows, device="cpu")], dim=1)


def _of_bytes(content: bytes, dtype: torch.dtype, device: torch.device) -> Tensor:
    return _tables.get((content, dtype), lambda: torch.frombuffer(bytearray(content), dtype=dtype), device)


class _Tables:
    """Tables that are on a device, so that a step does not send what an earlier one has sent; the latest few.

    A table belongs to the stream that it was sent in: another need not wait for that, nor would the allocator wait
    for another before it gives the memory away.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[Hashable, tuple[Tensor, int]] = OrderedDict()
        self._for_graphs: set[Tensor] = set()  # captured CUDA graphs read them and do not keep them alive

    def get(self, key: Hashable, make: Callable[[], Tensor], device: torch.device) -> Tensor:
        """The table that `make` makes on the CPU, on `device`; `key` says what it holds."""
        on_cuda = device.type == "cuda"
        stream = torch.cuda.current_stream(device).cuda_stream if on_cuda else 0
        known = self._known.pop((key, device), None)
        if on_cuda and torch.cuda.is_current_stream_capturing():
            if known is None:
                raise RuntimeError(
                    "A step captured in a CUDA graph must find its tensors where the step before had them: run a few "
                    "steps first, with the same settings, keep gradients in place (zero_grad(set_to_none=False)), and "
                    "have a learning rate on the device in float32."
                )
            self._for_graphs.add(known[0])
        elif known is None or known[1] != stream:
            # The allocator of pinned memory waits for the copy before it gives this memory away.
            table = make().pin_memory().to(device, non_blocking=True) if on_cuda else make()
            known = table, stream
        self._known[key, device] = known
        if len(self._known) > _MANY_TABLES:
            self._known.popitem(last=False)
        return known[0]


_tables = _Tables()
