"""The fused step in Triton, which comes with torch's builds for GPUs and compiles at a kernel's first launch.

All tensors of a dtype are one launch: a table holds their addresses, another cuts them into chunks. Tables go to the
device without waiting for it, and only when they differ from one that is there.
"""

from __future__ import annotations

import importlib.util
import math
from array import array
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from hf_pdyn.fused.settings import COLUMNS, KERNEL_SUMS, row, rows_of
from hf_pdyn.updates import Task, Update, group_lr

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NEEDS = "Triton, with the driver and the C compiler that it calls"

_for_graphs: list[Tensor] = []
"""What captured CUDA graphs read and would not keep alive by themselves."""


def why_not_here() -> str | None:
    """Why there can be no fused step on this machine's GPUs."""
    if importlib.util.find_spec("triton") is None:
        return "on GPUs it is written in Triton, which is not installed (pip install triton)"
    return None


def prepare() -> None:
    """Compile and launch the smaller kernel: it fails where anything that Triton calls is missing."""
    from hf_pdyn.fused import triton_kernels

    ends = torch.zeros(2, dtype=torch.int64, device="cuda")
    sums = torch.zeros(1, len(KERNEL_SUMS), device="cuda")
    triton_kernels.add_chunks[(1, 1)](sums, ends, sums.double(), tile=1024)


def advance(
    updates: Sequence[Update], tasks: Task, *, scale: Tensor | None = None, clip_factor: Tensor | None = None
) -> Tensor:
    """Do `tasks`, as `cpu.advance` does; the sums stand on the device, and nothing waits for it."""
    device = updates[0].theta.device
    alike: dict[Any, list[int]] = {}
    for i, update in enumerate(updates):
        published = update.group["bias_correction"] == "padam"
        key = (update.theta.dtype, update.grad.dtype, update.max_exp_avg_sq is not None, published)
        alike.setdefault(key, []).append(i)
    scale, clip_factor = (
        None if value is None else value.to(device=device, dtype=torch.float32) for value in (scale, clip_factor)
    )
    parts = [_advance_alike([updates[i] for i in indices], tasks, scale, clip_factor) for indices in alike.values()]
    if len(parts) == 1:
        return parts[0]
    # Put back in order by numbers that are arguments of kernels: an index would be sent to the device first.
    sums: list[Tensor] = [parts[0]] * len(updates)
    for indices, part in zip(alike.values(), parts, strict=True):
        for i, of_update in zip(indices, part, strict=True):
            sums[i] = of_update
    return torch.stack(sums)


def _advance_alike(updates: Sequence[Update], tasks: Task, scale: Tensor | None, clip_factor: Tensor | None) -> Tensor:
    import triton.language as tl

    from hf_pdyn.fused import triton_kernels

    types = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
    device, first = updates[0].theta.device, updates[0]
    rates: list[Tensor] = []  # held until the launch
    row_of, rows = rows_of(updates, _settings)
    runs, aligned = array("q"), True
    for update, number in zip(updates, row_of, strict=True):
        maximum = update.max_exp_avg_sq
        lr = group_lr(update.group)
        if isinstance(lr, Tensor):
            rates.append(lr.to(device=device, dtype=torch.float32))
        addresses = (
            update.theta.data_ptr(),
            update.grad.data_ptr(),
            update.exp_avg.data_ptr(),
            update.exp_avg_sq.data_ptr(),
            0 if maximum is None else maximum.data_ptr(),
        )
        aligned = aligned and not any(address % 16 for address in addresses)
        time = update.t.data_ptr() if isinstance(update.t, Tensor) else 0
        rate = rates[-1].data_ptr() if isinstance(lr, Tensor) else 0
        runs.extend((*addresses, time, rate, update.theta.numel(), number))
    chunks, first_chunks, n_chunks = _chunks(tuple(update.theta.numel() for update in updates))
    sums = torch.zeros(len(updates), len(KERNEL_SUMS), dtype=torch.float64, device=device)
    if not n_chunks:
        return sums
    table = array("f", [value for values in rows for value in values])
    chunk_sums = torch.zeros(n_chunks, len(KERNEL_SUMS), dtype=torch.float32, device=device)
    with torch.cuda.device(device):
        triton_kernels.step_chunk[(n_chunks,)](
            _on_device(runs.tobytes(), torch.int64, device),
            _on_device(chunks, torch.int64, device),
            _on_device(table.tobytes(), torch.float32, device),
            scale,
            clip_factor,
            chunk_sums,
            theta_type=types[first.theta.dtype],
            grad_type=types[first.grad.dtype],
            amsgrad=first.max_exp_avg_sq is not None,
            published=first.group["bias_correction"] == "padam",
            times_on_device=isinstance(first.t, Tensor),
            moments=bool(tasks & Task.MOMENTS),
            apply=bool(tasks & Task.APPLY),
            gradient=bool(tasks & Task.GRADIENT),
            direction=bool(tasks & Task.DIRECTION),
            measure=bool(tasks & Task.MEASURE),
            parameter=bool(tasks & Task.PARAMETER),
            aligned=aligned,
            num_warps=8,
        )
        if tasks & ~(Task.MOMENTS | Task.APPLY):
            triton_kernels.add_chunks[(len(updates), len(KERNEL_SUMS))](
                chunk_sums, _on_device(first_chunks, torch.int64, device), sums, tile=1024
            )
    return sums


def _settings(group: Any, t: Any) -> tuple[float, ...]:
    on_device = isinstance(t, Tensor)
    lr = group_lr(group)
    betas = (math.log(beta) if beta else -math.inf for beta in group["betas"])
    values = row(group, 1.0 if on_device else t, 0.0 if isinstance(lr, Tensor) else lr)
    assert len(values) == len(COLUMNS)
    return (*values, *betas)


@lru_cache(maxsize=16)
def _chunks(numels: tuple[int, ...]) -> tuple[bytes, bytes, int]:
    """(tensor, number within it) of every chunk; where each tensor's chunks begin, and their end; how many."""
    from hf_pdyn.fused.triton_kernels import CHUNK

    counts = torch.tensor([-(-numel // CHUNK.value) for numel in numels], dtype=torch.int64, device="cpu")
    ends = counts.cumsum(0)
    tensors = torch.repeat_interleave(torch.arange(len(numels), device="cpu"), counts)
    within = torch.arange(int(ends[-1]), device="cpu") - (ends - counts)[tensors]
    first_chunks = torch.cat([torch.zeros(1, dtype=torch.int64, device="cpu"), ends])
    return (
        array("q", torch.stack([tensors, within], dim=1).flatten().tolist()).tobytes(),
        array("q", first_chunks.tolist()).tobytes(),
        int(ends[-1]),
    )


@lru_cache(maxsize=64)
def _uploaded(content: bytes, dtype: torch.dtype, device: torch.device) -> Tensor:
    host = torch.frombuffer(bytearray(content), dtype=dtype)
    if device.type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


def _on_device(content: bytes, dtype: torch.dtype, device: torch.device) -> Tensor:
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    known = _uploaded.cache_info().misses
    table = _uploaded(content, dtype, device)
    if capturing:
        if _uploaded.cache_info().misses != known:
            raise RuntimeError(
                "A step captured in a CUDA graph must find its tensors where the step before had them: run a few steps "
                "first, with the same settings, and keep gradients in place (zero_grad(set_to_none=False))."
            )
        _for_graphs.append(table)
    return table
