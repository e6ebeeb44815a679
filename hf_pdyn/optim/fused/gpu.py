"""The fused step in Triton, which comes with torch's builds for GPUs and compiles at a kernel's first launch.

All tensors that one compiled kernel takes are one launch: a table holds their addresses, another cuts them into chunks.
Tables go to the device without waiting for it, and only when they differ from one that is there.
"""

from __future__ import annotations

import importlib.util
import math
from array import array
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import nullcontext
from functools import cache, lru_cache, partial
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_pdyn.optim.fused.layout import COLUMNS, FORMATS, Table, addresses_of, row, rows_of
from hf_pdyn.optim.fused.sending import Here, KnownTables, Mailbox, here
from hf_pdyn.optim.fused.triton_launch import Launches
from hf_pdyn.optim.hyperparameters import StateDtype
from hf_pdyn.optim.state_format import format_of
from hf_pdyn.optim.step_work import STEP_SUMS, Task, Update, group_lr

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NEEDS = "Triton, with the driver and the C compiler that it calls"

_VECTOR = 16
"""Bytes of a vector load: what addresses must be multiples of; and elements, of which sizes must be."""

_WARPS, _WARPS_THAT_ROUND = 8, 4
"""Warps of a program. Rounding moments takes more registers, so fewer threads have more elements each."""


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
    state_dtype: StateDtype
    amsgrad: bool
    corrected: bool
    times_on_device: bool
    aligned: bool


_variant_of = cache(_Variant)

_KeyAndMake = tuple[Hashable, Callable[[], Tensor]]
"""What a table holds, and what makes it on the CPU."""


def variant(update: Update) -> _Variant:
    """What the kernel that takes `update` is compiled for."""
    together = update.theta.numel()
    for address in update.addresses or addresses_of(update):
        together |= address
    return _variant_of(
        update.theta.dtype,
        update.grad.dtype,
        format_of(update.exp_avg),
        update.max_exp_avg_sq is not None,
        update.weight_correction is not None,
        isinstance(update.t, Tensor),
        not together % _VECTOR,
    )


class Tables:
    """What the kernels are told of some updates; the same for all passes of a step.

    A later step whose gradients alone lie elsewhere can `follow`.
    """

    def __init__(self, updates: Sequence[Update]) -> None:
        alike: dict[_Variant, list[int]] = {}
        for i, update in enumerate(updates):
            alike.setdefault(update.variant or variant(update), []).append(i)
        self.device = updates[0].theta.device
        self.launches = [_Launch(kind, [updates[i] for i in rows], rows) for kind, rows in alike.items()]

    def follow(self, grads_at: Sequence[int], times: Sequence[Any]) -> bool:
        """Take gradients and step counts from here, of each update; those of one group and count have stayed alike.

        False where a gradient needs another kernel now.
        """
        return all(launch.follow(grads_at, times, whole=len(self.launches) == 1) for launch in self.launches)


class _Launch:
    """A launch of the kernel: updates of one variant; `rows` of the sums are theirs."""

    def __init__(self, kind: _Variant, updates: Sequence[Update], rows: Sequence[int]) -> None:
        self._kind, self._rows = kind, tuple(rows)
        self._numels = tuple([update.theta.numel() for update in updates])
        self._n_chunks = _count_chunks(self._numels)
        self._settings = rows_of(updates)
        self._rates: list[Tensor | None] = []
        self._table = Table(
            [
                (
                    *(update.addresses or addresses_of(update)),
                    update.t.data_ptr() if kind.times_on_device else 0,
                    0,
                    numel,
                    number,
                    update.number,
                    update.start,
                )
                for update, numel, number in zip(updates, self._numels, self._settings.of_update, strict=True)
            ]
        )
        self._grads_at: Sequence[int] = ()
        self._launch_step, self._launch_sums = Launches(), Launches()
        self._sent: dict[str, Tensor] = {}
        self._mailbox: Mailbox | None = None
        self._stream: int | None = None  # of both

    def follow(self, grads_at: Sequence[int], times: Sequence[Any], *, whole: bool) -> bool:
        if not whole:
            grads_at, times = ([values[i] for i in self._rows] for values in (grads_at, times))
        if grads_at != self._grads_at:
            if self._kind.aligned and any(map((_VECTOR - 1).__and__, grads_at)):
                return False
            self._table.follow(grads_at)
            self._grads_at = grads_at
            self._sent.pop("runs", None)
        self._settings.follow(times)
        return True

    def advance(self, tasks: Task, scalars: Sequence[Tensor | None], where: Here) -> Tensor:
        """Do `tasks`; returns sums of chunks, of which `add_up` makes sums of tensors.

        scalars: c_t, the clip factor and `skip`, each None or in float32 on the device.
        """
        kind, columns = self._kind, _columns(tasks)
        if where.capturing or where.stream != self._stream:
            self._sent.clear()
            self._mailbox, self._stream = None, where.stream
        self._point_at_rates(where.device)
        make = torch.empty if columns <= 1 else torch.zeros  # one column is filled whole
        shape = self._n_chunks if columns else 0, len(STEP_SUMS)
        chunk_sums = make(shape, dtype=torch.float32, device=where.device)
        if self._n_chunks:
            runs = self._table_of("runs", lambda: _bytes_and_maker(self._table.values), where)
            chunks = self._table_of("chunks", lambda: (self._numels, partial(_chunks, self._numels)), where)
            self._launch_step(
                _kernels().step_chunk,
                (self._n_chunks, 1, 1),
                (runs, chunks, self._settings_there(where), *scalars, chunk_sums),
                _constants_of(kind, tasks),
                num_warps=_WARPS if kind.state_dtype == "fp32" or tasks & Task.MEASURE else _WARPS_THAT_ROUND,
                enable_fp_fusion=True,  # Triton 3.9 warns where it is left to a default that is to change
            )
        return chunk_sums

    def add_up(self, chunk_sums: Tensor, tasks: Task, sums: Tensor, where: Here) -> None:
        """Put the sums of these tensors into their rows of `sums`."""
        columns = _columns(tasks)
        if columns and self._n_chunks:
            ends = self._table_of(
                "ends", lambda: ((self._numels, self._rows), partial(_ends, self._numels, self._rows)), where
            )
            self._launch_sums(
                _kernels().add_chunks,
                (len(self._rows), columns, 1),
                (chunk_sums, ends, sums),
                {"tile": 1024},
                enable_fp_fusion=True,
            )

    def _point_at_rates(self, device: torch.device) -> None:
        """Have the table say where learning rates are that stand on the device; those copied for that are kept."""
        before, self._rates = self._rates, [_rate_on_device(group, device) for group, _ in self._settings.keys]
        if any(rate is not None for rate in (*before, *self._rates)):
            lr_at = [0 if rate is None else rate.data_ptr() for rate in self._rates]
            self._table.fill(_kernels().RUN_COLUMNS.index("lr_at"), [lr_at[i] for i in self._settings.of_update])
            self._sent.pop("runs", None)

    def _settings_there(self, where: Here) -> Tensor:
        """The settings of every row, on the device."""
        values = array("f", chain.from_iterable(_settings(group, t) for group, t in self._settings.keys))
        if not self._grads_at or where.capturing:  # a first step, which may be the only one
            key, make = _bytes_and_maker(values)
            return _tables.get(key, make, where)
        self._mailbox = self._mailbox or Mailbox(len(values), where.device)
        return self._mailbox.send(values)

    def _table_of(self, name: str, key_and_make: Callable[[], _KeyAndMake], where: Here) -> Tensor:
        """A table on the device: the one of the last step, unless it has been taken out of `_sent` since."""
        found = self._sent.get(name)
        if found is None:
            key, make = key_and_make()
            found = self._sent[name] = _tables.get((name, key), make, where)
        return found


@cache
def _constants_of(kind: _Variant, tasks: Task) -> dict[str, Any]:
    """What the kernel is compiled for, in the order of its parameters."""
    return {
        "theta_type": _triton(kind.theta_type),
        "grad_type": _triton(kind.grad_type),
        "m_format": FORMATS.index(kind.state_dtype),
        "amsgrad": kind.amsgrad,
        "corrected": kind.corrected,
        "times_on_device": kind.times_on_device,
        "aligned": kind.aligned,
        "moments": bool(tasks & Task.MOMENTS),
        "apply": bool(tasks & Task.APPLY),
        "gradient": bool(tasks & Task.GRADIENT),
        "direction": bool(tasks & Task.DIRECTION),
        "measure": bool(tasks & Task.MEASURE),
        "parameter": bool(tasks & Task.PARAMETER),
    }


@cache
def _columns(tasks: Task) -> int:
    """How many of STEP_SUMS, from the first on, a launch may fill."""
    asked = tasks & ~(Task.MOMENTS | Task.APPLY)
    return 0 if not asked else STEP_SUMS.index("grad_sq") + 1 if asked == Task.GRADIENT else len(STEP_SUMS)


def advance(
    updates: Sequence[Update],
    tasks: Task,
    *,
    scale: Tensor | None = None,
    clip_factor: Tensor | None = None,
    skip: Tensor | None = None,
    tables: Tables | None = None,
) -> Tensor:
    """An `Advance`; the sums stand on the device, and nothing waits for it. tables: of `updates`, if there are any yet.

    What is done on the host after the launches does not hold up the device.
    """
    tables = tables or Tables(updates)
    device = tables.device
    scalars = [
        None if value is None else value.to(device=device, dtype=torch.float32) for value in (scale, clip_factor, skip)
    ]
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        where = here(device)
        by_chunk = [launch.advance(tasks, scalars, where) for launch in tables.launches]
        sums = torch.zeros(len(updates), len(STEP_SUMS), dtype=torch.float64, device=device)
        for launch, chunk_sums in zip(tables.launches, by_chunk, strict=True):
            launch.add_up(chunk_sums, tasks, sums, where)
    return sums


@cache
def _kernels() -> Any:
    from hf_pdyn.optim.fused import triton_kernels

    return triton_kernels


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


@lru_cache(maxsize=64)
def _count_chunks(numels: tuple[int, ...]) -> int:
    return sum(_chunks_of(numel) for numel in numels)


def _chunks(numels: Sequence[int]) -> Tensor:
    """(tensor, number within it) of every chunk; on the CPU, int32."""
    counts = torch.tensor([_chunks_of(numel) for numel in numels], device="cpu")
    tensors = torch.repeat_interleave(torch.arange(len(numels), device="cpu"), counts)
    within = torch.arange(len(tensors), device="cpu") - (counts.cumsum(0) - counts)[tensors]
    return torch.stack([tensors, within], dim=1).int()


def _ends(numels: Sequence[int], rows: Sequence[int]) -> Tensor:
    """Each tensor's first chunk, the one after its last, and its row of the sums; on the CPU."""
    counts = torch.tensor([_chunks_of(numel) for numel in numels], device="cpu")
    stops = counts.cumsum(0)
    return torch.stack([stops - counts, stops, torch.tensor(rows, device="cpu")], dim=1)


def _bytes_and_maker(values: array[Any]) -> _KeyAndMake:
    """A key that says what a table holds, and what makes it on the CPU."""
    content = values.tobytes()
    dtype = torch.int64 if values.typecode == "q" else torch.float32
    return content, lambda: torch.frombuffer(bytearray(content), dtype=dtype)


_tables = KnownTables()
