"""`padam.cpp`, called through ctypes."""

from __future__ import annotations

import ctypes
import math
from array import array
from collections.abc import Hashable, Mapping, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_pdyn.optim.fused.building import NEEDS, build, why_not_here
from hf_pdyn.optim.fused.layout import COLUMNS, FORMATS, Table, addresses_of, row, rows_of
from hf_pdyn.optim.state_format import format_of
from hf_pdyn.optim.step_work import STEP_SUMS, Task, Update, group_lr

__all__ = ["DTYPES", "NEEDS", "Tables", "advance", "library", "prepare", "variant", "why_not_here"]

DTYPES = (torch.float32, torch.bfloat16)

_SOURCE = Path(__file__).with_name("padam.cpp")
SETTINGS = (*COLUMNS[: COLUMNS.index("lr")], "rate", "decay", "grad_rescale")
"""`Settings` of padam.cpp."""
_TYPES = {torch.float32: 0, torch.bfloat16: 1}


class _Call(ctypes.Structure):
    """`Call` of padam.cpp."""

    _fields_ = (
        ("runs", ctypes.c_void_p),
        ("settings", ctypes.c_void_p),
        ("n_runs", ctypes.c_int64),
        ("n_chunks", ctypes.c_int64),
        ("tasks", ctypes.c_int32),
        ("theta_type", ctypes.c_int32),
        ("grad_type", ctypes.c_int32),
        ("format", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    )


@cache
def library() -> ctypes.CDLL:
    """The kernel, compiled if it is not yet. Whatever keeps it from being built is raised as it comes."""
    loaded = ctypes.CDLL(str(build(_SOURCE)))
    loaded.hf_pdyn_step.argtypes = [ctypes.c_void_p] * 3
    loaded.hf_pdyn_step.restype = None
    loaded.hf_pdyn_chunk.restype = ctypes.c_int64
    return loaded


def prepare() -> None:
    """Compile what a step needs."""
    library()


def variant(update: Update) -> Hashable:
    """What the kernel is told of a whole call: updates that differ in it take a call each."""
    return update.theta.dtype, update.grad.dtype, format_of(update.exp_avg), update.weight_correction is not None


class Tables:
    """What the kernel is told of some updates; the same for all passes of a step.

    A later step whose gradients alone lie elsewhere can `follow`.
    """

    def __init__(self, updates: Sequence[Update]) -> None:
        alike: dict[Hashable, list[int]] = {}
        for i, update in enumerate(updates):
            alike.setdefault(update.variant or variant(update), []).append(i)
        self.calls = [_Alike([updates[i] for i in indices], indices) for indices in alike.values()]

    def follow(self, grads_at: Sequence[int], times: Sequence[Any]) -> bool:
        """Take gradients and step counts from here, of each update; those of one group and count have stayed alike."""
        for call in self.calls:
            call.follow(grads_at, times, whole=len(self.calls) == 1)
        return True


class _Alike:
    """A call of the kernel: updates of one variant, `indices` among all."""

    def __init__(self, updates: Sequence[Update], indices: Sequence[int]) -> None:
        self.indices = indices
        self.n_chunks = 0
        self._rows = rows_of(updates)
        first = updates[0]
        self._types = _TYPES[first.theta.dtype], _TYPES[first.grad.dtype], FORMATS.index(format_of(first.exp_avg))
        chunk, table = library().hf_pdyn_chunk(), []
        for update, number in zip(updates, self._rows.of_update, strict=True):
            numel = update.theta.numel()
            addresses = update.addresses or addresses_of(update)
            table.append((*addresses, numel, self.n_chunks, number, update.number, update.start))
            self.n_chunks += -(-numel // chunk)
        self._table = Table(table)
        self._by_chunk = torch.empty(self.n_chunks, len(STEP_SUMS), dtype=torch.float64, device="cpu")

    def follow(self, grads_at: Sequence[int], times: Sequence[Any], *, whole: bool) -> None:
        if not whole:
            grads_at, times = ([values[i] for i in self.indices] for values in (grads_at, times))
        self._table.follow(grads_at)
        self._rows.follow(times)

    def advance(self, tasks: Task, c_t: float, grad_rescale: float) -> Tensor:
        settings = (_settings(group, t, c_t, grad_rescale) for group, t in self._rows.keys)
        constants = array("f", chain.from_iterable(settings))
        call = _Call(
            self._table.values.buffer_info()[0],
            constants.buffer_info()[0],
            len(self.indices),
            self.n_chunks,
            int(tasks),
            *self._types,
            torch.get_num_threads(),
        )
        # A column in a row: statistics of most steps take the first alone, and no tensor operation is free here.
        sums = torch.empty(len(STEP_SUMS), len(self.indices), dtype=torch.float64, device="cpu")
        library().hf_pdyn_step(ctypes.addressof(call), self._by_chunk.data_ptr(), sums.data_ptr())
        # ctypes has let other threads run meanwhile; until here nothing above may be freed, nor is it.
        return sums.t()


def advance(
    updates: Sequence[Update],
    tasks: Task,
    *,
    scale: Tensor | None = None,
    clip_factor: Tensor | None = None,
    skip: Tensor | None = None,
    tables: Tables | None = None,
) -> Tensor:
    """An `Advance`, in one call of the kernel for every variant; tables: of `updates`, if there are any yet."""
    factor = 1.0 if clip_factor is None else float(clip_factor)
    rescale = 1 / factor if factor else math.inf  # clipped by an infinite norm
    c_t = 1.0 if scale is None else float(scale)
    calls = [] if skip is not None and skip else (tables or Tables(updates)).calls
    if len(calls) == 1:
        return calls[0].advance(tasks, c_t, rescale)
    sums = torch.zeros(len(updates), len(STEP_SUMS), dtype=torch.float64, device="cpu")
    for call in calls:
        sums[call.indices] = call.advance(tasks, c_t, rescale)
    return sums


def _settings(group: Mapping[str, Any], t: float, c_t: float, grad_rescale: float) -> tuple[float, ...]:
    """The values of SETTINGS."""
    lr = group_lr(group)
    *constants, _, weight_decay = row(group, t, lr)
    return (*constants, lr * c_t, lr * weight_decay, grad_rescale)
