"""`padam.cpp`: built by torch's extension loader at the first use on a machine, kept, and called through ctypes."""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import platform
import sys
import tempfile
from array import array
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_pdyn.common.environment import cache_dir
from hf_pdyn.optim.fused.layout import COLUMNS, Table, addresses_of, row, rows_of
from hf_pdyn.optim.state_format import format_of
from hf_pdyn.optim.step_work import STEP_SUMS, Task, Update, group_lr

DTYPES = (torch.float32, torch.bfloat16)

_SOURCE = Path(__file__).with_name("padam.cpp")
_FLAGS = ("-O3", "-std=c++17", "-fopenmp", "-fno-math-errno", "-fno-trapping-math")
# By what torch found the CPU to have, not -march=native: nodes of a cluster share a cache, and torch's own kernels
# are chosen so. GCC prefers 256-bit vectors on most CPUs with 512-bit ones; here these are a tenth faster.
_VECTORS: dict[str, tuple[str, ...]] = {
    "AVX512": ("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"),
    "AVX2": ("-mavx2", "-mfma"),
}
NEEDS = "a C++ compiler with OpenMP, ninja (pip install ninja) and a cache directory that can be written"
SETTINGS = (*COLUMNS[: COLUMNS.index("lr")], "rate", "decay", "grad_rescale")
"""`Settings` of padam.cpp."""
_TYPES = {torch.float32: 0, torch.bfloat16: 1}
_FORMATS = ("fp32", "16bit", "8_16bit")


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


def why_not_here() -> str | None:
    """Why there can be no fused step on this machine's CPU, as far as can be told without a compiler."""
    if sys.platform != "linux":
        return f"on CPUs it is built on Linux only, this is {sys.platform}"
    capability = torch.backends.cpu.get_cpu_capability()
    if platform.machine() == "x86_64" and capability not in _VECTORS:
        return f"on x86 it needs {' or '.join(_VECTORS)}, torch found {capability}"
    return None


@cache
def library() -> ctypes.CDLL:
    """The kernel, compiled if it is not yet. Whatever keeps it from being built is raised as it comes."""
    loaded = ctypes.CDLL(str(_build()))
    loaded.hf_pdyn_step.argtypes = [ctypes.c_void_p] * 3
    loaded.hf_pdyn_step.restype = None
    loaded.hf_pdyn_chunk.restype = ctypes.c_int64
    return loaded


def prepare() -> None:
    """Compile what a step needs."""
    library()


def variant(update: Update) -> Hashable:
    """What the kernel is told of a whole call: updates that differ in it take a call each."""
    return update.theta.dtype, update.grad.dtype, format_of(update.exp_avg)


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
        self._types = _TYPES[first.theta.dtype], _TYPES[first.grad.dtype], _FORMATS.index(format_of(first.exp_avg))
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
        sums = torch.empty(len(self.indices), len(STEP_SUMS), dtype=torch.float64, device="cpu")
        library().hf_pdyn_step(ctypes.addressof(call), self._by_chunk.data_ptr(), sums.data_ptr())
        # ctypes has let other threads run meanwhile; until here nothing above may be freed, nor is it.
        return sums


def advance(
    updates: Sequence[Update],
    tasks: Task,
    *,
    scale: Tensor | None = None,
    clip_factor: Tensor | None = None,
    tables: Tables | None = None,
) -> Tensor:
    """An `Advance`, in one call of the kernel for every variant; tables: of `updates`, if there are any yet."""
    factor = 1.0 if clip_factor is None else float(clip_factor)
    rescale = 1 / factor if factor else math.inf  # clipped by an infinite norm
    c_t = 1.0 if scale is None else float(scale)
    calls = (tables or Tables(updates)).calls
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


def cached_library() -> Path:
    """Where the compiled kernel is kept: with torch's extensions, or under the user's cache directory.

    Its name tells the source, the flags and torch's version, so one directory serves different machines.
    """
    key = hashlib.sha256(repr((_SOURCE.read_bytes(), _flags(), torch.__version__)).encode()).hexdigest()[:16]
    extensions = os.environ.get("TORCH_EXTENSIONS_DIR")
    folder = Path(extensions).expanduser() / "hf_pdyn" if extensions else cache_dir()
    return folder / f"padam_{key}.so"


def _flags() -> tuple[str, ...]:
    return (*_FLAGS, *_VECTORS.get(torch.backends.cpu.get_cpu_capability(), ()))


def _build() -> Path:
    """The path of the compiled kernel, which is there afterwards.

    It is compiled in a directory of this process and then renamed: torch's loader leaves a lock behind where it
    is killed (2.13), and the next process would wait for ever.
    """
    target = cached_library()
    if not target.exists():
        # It imports setuptools, which costs more than loading what is compiled already.
        from torch.utils import cpp_extension

        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder, _scripts_on_path():
            built = cpp_extension.load(
                "hf_pdyn_padam",
                [str(_SOURCE)],
                extra_cflags=list(_flags()),
                extra_ldflags=["-fopenmp"],
                build_directory=folder,
                is_python_module=False,
            )
            os.replace(built, target)
    return target


@contextmanager
def _scripts_on_path() -> Iterator[None]:
    """For ninja, which torch's loader calls: pip puts it beside python, which need not be on the PATH."""
    before = os.environ.get("PATH", "")
    own = str(Path(sys.executable).parent) if sys.executable else ""
    os.environ["PATH"] = os.pathsep.join(filter(None, [before, own]))
    try:
        yield
    finally:
        os.environ["PATH"] = before
