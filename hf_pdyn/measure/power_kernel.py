"""`power_sums.cpp`: M(s) of float32 moments on CPUs, in one pass over them."""

from __future__ import annotations

import ctypes
import warnings
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from hf_pdyn.measure.moments import Moments
from hf_pdyn.optim.fused.availability import WORTH_COMPILING
from hf_pdyn.optim.fused.building import NEEDS, build, essence, why_not_here
from hf_pdyn.policy.allocation_curve import COUNT, FIRST, STEP
from hf_pdyn.tensors.power_sums import below_one, power_sums

_SOURCE = Path(__file__).with_name("power_sums.cpp")
_MOST_HELD = 2**24
"""Elements that are collected for one call. Moments may be decoded copies, which must not become a model of them."""
_CLOSE = 1e-5
"""Largest difference from tensor operations: both are as far from float64 at most (tests)."""


class _Piece(ctypes.Structure):
    """`Piece` of power_sums.cpp."""

    _fields_ = (
        ("exp_avg", ctypes.c_void_p),
        ("exp_avg_sq", ctypes.c_void_p),
        ("numel", ctypes.c_int64),
        ("first_chunk", ctypes.c_int64),
        ("row", ctypes.c_int64),
        ("of_m", ctypes.c_double),
        ("of_v", ctypes.c_double),
        ("eps", ctypes.c_double),
        ("weight", ctypes.c_double),
    )


class PowerKernel:
    """Collects pieces and sums their moments' M(s), at the s of `policy.allocation_curve`, by row; `rows` of them."""

    def __init__(self, rows: int) -> None:
        self._sums = torch.zeros(rows, COUNT, dtype=torch.float64, device="cpu")
        self._pieces: list[tuple[Moments, float, int]] = []
        self._held = 0

    @staticmethod
    def takes(moments: Moments) -> bool:
        """Whether these are float32 in one piece on a CPU."""
        pair = (moments.exp_avg, moments.exp_avg_sq)
        return all(m.is_cpu and m.dtype == torch.float32 and m.is_contiguous() and not m.is_neg() for m in pair)

    def add(self, moments: Moments, weight: float, row: int) -> None:
        """Let `weight` times the sums of these moments be part of a row."""
        self._pieces.append((moments, weight, row))
        self._held += moments.exp_avg.numel()
        if self._held >= _MOST_HELD:
            self._sum()

    def sums(self) -> Tensor:
        """The sums of all that was added, shape (rows, COUNT), float64."""
        self._sum()
        return self._sums

    def _sum(self) -> None:
        library, chunks = _library(), 0
        table = (_Piece * len(self._pieces))()
        for i, (moments, weight, row) in enumerate(self._pieces):
            m, v, numel = moments.exp_avg, moments.exp_avg_sq, moments.exp_avg.numel()
            constants = (float(moments.of_m), float(moments.of_v), moments.eps, weight)
            table[i] = _Piece(m.data_ptr(), v.data_ptr(), numel, chunks, row, *constants)
            chunks += -(-numel // library.hf_pdyn_power_chunk())
        of_chunks = torch.empty(chunks, COUNT, dtype=torch.float64, device="cpu")
        library.hf_pdyn_power_sums(
            table,
            len(table),
            chunks,
            STEP,
            below_one(FIRST, STEP),
            COUNT,
            torch.get_num_threads(),
            of_chunks.data_ptr(),
            self._sums.data_ptr(),
        )
        self._pieces, self._held = [], 0


def is_worth_it(numel: int) -> bool:
    """Whether so many elements on a CPU are summed by the kernel, which is compiled then, if it is not yet.

    As with the fused step, this depends on nothing that differs from one run to the next, such as what is compiled
    already. Where a compiler is missing or fails, a warning says so, once in a process.
    """
    return numel >= WORTH_COMPILING and why_not_here() is None and _works()


@cache
def _library() -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(build(_SOURCE)))
    loaded.hf_pdyn_power_chunk.restype = ctypes.c_int64
    pointer, int64 = ctypes.c_void_p, ctypes.c_int64
    grid = (ctypes.c_double, int64, int64)
    loaded.hf_pdyn_power_sums.argtypes = [pointer, int64, int64, *grid, ctypes.c_int32, pointer, pointer]
    loaded.hf_pdyn_power_sums.restype = None
    return loaded


@cache
def _works() -> bool:
    """Compiles it, and compares it with tensor operations before its first use in a process."""
    try:
        _library()
    except Exception as error:
        reason = f"could not be compiled, which needs {NEEDS}: {essence(error)}"
    else:
        off = _largest_difference()
        if off <= _CLOSE:
            return True
        reason = f"disagrees with tensor operations by {off:.1e}, more than {_CLOSE:.1e}; please report it"
    warnings.warn(
        f"The kernel of the allocation curve {reason}. Tensor operations take its place, in ten times the time.",
        stacklevel=2,
    )
    return False


def _largest_difference() -> float:
    """The relative one from tensor operations, over some orders of magnitude. Draws no number of a global generator."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 1000, generator=generator, device="cpu")
    v = (3 * noise[0] - 20).exp()
    moments = Moments(noise[1] * v.sqrt(), v, 0.5, 0.01, 1e-16)
    kernel = PowerKernel(1)
    kernel.add(moments, 1.0, 0)
    expected = power_sums(moments.weighted(len(v)), first=FIRST, step=STEP, count=COUNT)
    return float((kernel.sums()[0] / expected - 1).abs().max().nan_to_num(nan=float("inf")))
