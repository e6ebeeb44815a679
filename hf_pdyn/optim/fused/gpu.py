"""The fused step in Triton, which comes with torch's builds for GPUs and compiles at a kernel's first launch.

All tensors that one compiled kernel takes are one launch: a table holds their addresses, another cuts them into chunks.
Tables go to the device without waiting for it, and only when they differ from one that is there.
"""

from __future__ import annotations

import importlib.util
import math
from array import array
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_pdyn.optim.fused.layout import COLUMNS, KERNEL_SUMS, row, rows_of
from hf_pdyn.optim.step_work import Task, Update, group_lr

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


def advance(
    updates: Sequence[Update], tasks: Task, *, scale: Tensor | None = None, clip_factor: Tensor | None = None
) -> Tensor:
    """Do `tasks`, as `cpu.advance` does; the sums stand on the device, and nothing waits for it."""
    device = updates[0].theta.device
    addresses = [_addresses(update) for update in updates]
    alike: dict[_Variant, list[int]] = {}
    for i, update in enumerate(updates):
        alike.setdefault(_variant(update, addresses[i]), []).append(i)
    scale, clip_factor = (
        None if value is None else value.to(device=device, dtype=torch.float32) for value in (scale, clip_factor)
    )
    sums = torch.zeros(len(updates), len(KERNEL_SUMS), dtype=torch.float64, device=device)
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        for variant, rows in alike.items():
            part, starts = [updates[i] for i in rows], [addresses[i] for i in rows]
            _launch(variant, part, starts, tasks, scale, clip_factor, sums, rows)
    return sums


def _addresses(update: Update) -> tuple[int, ...]:
    tensors = (update.theta, update.grad, update.exp_avg, update.exp_avg_sq, update.max_exp_avg_sq)
    return tuple(0 if tensor is None else tensor.data_ptr() for tensor in tensors)


def _variant(update: Update, addresses: tuple[int, ...]) -> _Variant:
    return _Variant(
        update.theta.dtype,
        update.grad.dtype,
        update.max_exp_avg_sq is not None,
        isinstance(update.t, Tensor),
        not any(number % _VECTOR for number in (*addresses, update.theta.numel())),
    )


def _launch(
    variant: _Variant,
    updates: Sequence[Update],
    addresses: Sequence[tuple[int, ...]],
    tasks: Task,
    scale: Tensor | None,
    clip_factor: Tensor | None,
    sums: Tensor,
    rows: Sequence[int],
) -> None:
    """Do `tasks` for updates of one variant; `rows` of `sums` are theirs."""
    from hf_pdyn.optim.fused import triton_kernels

    device, numels = sums.device, tuple(update.theta.numel() for update in updates)
    n_chunks = sum(_chunks_of(numel) for numel in numels)
    if not n_chunks:
        return
    rates = [_rate_on_device(update, device) for update in updates]
    setting_of, settings = rows_of(updates, _settings)
    runs = array("q")
    for update, starts, rate, setting in zip(updates, addresses, rates, setting_of, strict=True):
        time = update.t.data_ptr() if variant.times_on_device else 0
        runs.extend((*starts, time, 0 if rate is None else rate.data_ptr(), update.theta.numel(), setting))
    constants = array("f", [value for values in settings for value in values])
    summing = bool(tasks & ~(Task.MOMENTS | Task.APPLY))
    chunk_sums = torch.zeros(n_chunks if summing else 0, len(KERNEL_SUMS), dtype=torch.float32, device=device)
    triton_kernels.step_chunk[(n_chunks,)](
        _of_bytes(runs.tobytes(), torch.int64, device),
        _tables.get(("chunks", numels), partial(_chunks, numels), device),
        _of_bytes(constants.tobytes(), torch.float32, device),
        scale,
        clip_factor,
        chunk_sums,
        **{**variant._asdict(), "theta_type": _triton(variant.theta_type), "grad_type": _triton(variant.grad_type)},
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
        ends = _tables.get(("ends", numels, tuple(rows)), partial(_ends, numels, rows), device)
        _add_chunks(chunk_sums, ends, sums)


def _add_chunks(chunk_sums: Tensor, ends: Tensor, sums: Tensor) -> None:
    from hf_pdyn.optim.fused import triton_kernels

    grid = (len(ends), len(KERNEL_SUMS))
    triton_kernels.add_chunks[grid](chunk_sums, ends, sums, tile=1024, enable_fp_fusion=True)


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


def _rate_on_device(update: Update, device: torch.device) -> Tensor | None:
    lr = group_lr(update.group)
    return lr.to(device=device, dtype=torch.float32) if isinstance(lr, Tensor) else None


def _chunks_of(numel: int) -> int:
    from hf_pdyn.optim.fused.triton_kernels import CHUNK

    return -(-numel // CHUNK.value)


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
