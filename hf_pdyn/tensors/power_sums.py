"""Sums of w x^(1 - s) over many tensors for a row of equally spaced exponents s, in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from hf_pdyn.tensors.norms import accumulator_dtype

_PART_OF_A_THREAD, _LARGEST_PART = 2**18, 2**22
"""Elements that are worked on at a time: temporaries have this size. Smaller parts stay in a CPU's caches, but starting
its threads for each of a hundred operations then takes twice the time of the arithmetic, and ten times where another
pool of threads waits in the process."""


def part_size(device: torch.device) -> int:
    """How many elements a pair given to `power_sums` should have at most."""
    return min(_PART_OF_A_THREAD * torch.get_num_threads(), _LARGEST_PART) if device.type == "cpu" else _LARGEST_PART


def below_one(first: float, step: float) -> int:
    """How many of s = first, first + step, ... come before 1."""
    return round((1 - first) / step)


def power_sums(pairs: Iterable[tuple[Tensor, Tensor]], *, first: float, step: float, count: int) -> Tensor:
    """Sum w x^(1 - s) for s = first, first + step, ...; shape (count,), in `accumulator_dtype`.

    first <= 1 and one of the s is 1. Errors stay below 1e-5 relative: x is divided by its mean, so that no power leaves
    float32 unless its share of the sum is nothing, and powers are products of at most (1 - first) / step factors.

    Args:
        pairs: (w, x), float32, one-dimensional, w >= 0, x > 0; both are overwritten. One pair at least.
        first: the first s.
        step: between one s and the next.
        count: of s.
    """
    below = below_one(first, step)
    total: Tensor | None = None
    for w, x in _joined(pairs):
        mean = x.mean()
        x.div_(mean).log_().mul_(step)
        dtype = accumulator_dtype(w.device)
        up = torch.exp(-x)
        down = x.exp_()
        sums = [w.sum()]
        rest = w.clone()
        for _ in range(below):
            sums.append(rest.mul_(down).sum())
        sums.reverse()
        for _ in range(count - below - 1):
            sums.append(w.mul_(up).sum())
        exponents = torch.arange(below, below - count, -1, device=w.device, dtype=dtype) * step  # 1 - s
        part = torch.stack(sums).to(dtype) * mean.to(dtype) ** exponents
        total = part if total is None else total + part
    assert total is not None
    return total


def _joined(pairs: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Small pairs are put together, as every operation has a cost of its own."""
    kept: list[tuple[Tensor, Tensor]] = []
    size = 0
    for pair in pairs:
        numel = pair[0].numel()
        if kept and size + numel > part_size(pair[0].device):
            yield _one(kept)
            kept, size = [], 0
        kept.append(pair)
        size += numel
    if kept:
        yield _one(kept)


def _one(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    if len(pairs) == 1:
        return pairs[0]
    return torch.cat([w for w, _ in pairs]), torch.cat([x for _, x in pairs])
