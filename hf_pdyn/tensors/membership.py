"""Sums of values over the sets that they belong to, in one order on every device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_DENSE = 2**18
"""The largest table of members and sets: 2 MB, which one product reads in less time than several small operations."""
_FAN_IN = 16
"""Values that are added at a time where there is no table."""


class Membership:
    """Which of `count` sets each member enters, and with what share of its value.

    Few members and sets are a table, and sums a product with it; it would grow with the square of a model's tensors.
    More are added along trees: gathered `_FAN_IN` at a time, then what that gave, until each set has one value. Both
    add in one order, so a sum repeats itself bit for bit.

    Args:
        sets: of every member, the numbers of its sets.
        shares: of every member, the factor of its values; none is 0.
        count: how many sets there are.
    """

    def __init__(self, sets: Sequence[Sequence[int]], shares: Sequence[float], count: int) -> None:
        self._count = count
        self._shares = torch.tensor(shares, dtype=torch.float64, device="cpu").view(-1, 1)
        self._table: Tensor | None = None
        self._levels: list[Tensor] = []
        if len(sets) * (count + 1) <= _DENSE:
            table = torch.zeros(count, len(sets), dtype=torch.float64, device="cpu")
            for column, own in zip(table.unbind(1), sets, strict=True):
                column[list(own)] = 1.0
            self._table = table * self._shares.T
        else:
            self._levels = _levels(sets, count)

    def column_sums(self, values: Tensor) -> Tensor:
        """Sums of `values`, shape (members,), over every set: shape (count,). NaN and infinity may spread to others."""
        self._move(values)
        if self._table is None:
            return self._along_trees(values[:, None] * self._shares)[0]
        # A product is quicker on a CPU and slower on a GPU.
        return torch.mv(self._table, values) if values.is_cpu else (self._table * values).sum(dim=1)

    def sums(self, values: Tensor) -> Tensor:
        """Sums of each column of `values`, shape (members, n), all finite, over every set: shape (n, count)."""
        self._move(values)
        if self._table is None:
            return self._along_trees(values * self._shares)
        return values.T @ self._table.T

    def finite_sums(self, values: Tensor) -> Tensor:
        """As `sums`, where NaN and infinity make their sets NaN and leave the others alone."""
        finite = values.isfinite()
        sums = self.sums(torch.where(finite, values, 0))
        return torch.where(self.sums((~finite).to(values.dtype)) > 0, math.nan, sums)

    def _move(self, like: Tensor) -> None:
        """Once for a device: sending waits for it."""
        if self._shares.device != like.device or self._shares.dtype != like.dtype:
            self._shares = self._shares.to(like)
            self._levels = [level.to(like.device) for level in self._levels]
            self._table = None if self._table is None else self._table.to(like)

    def _along_trees(self, values: Tensor) -> Tensor:
        for level in self._levels:
            padded = torch.cat([values, values.new_zeros(1, values.shape[1])])
            values = padded[level].sum(dim=1)
        return values.T


def _levels(sets: Sequence[Sequence[int]], count: int) -> list[Tensor]:
    """For each round, the numbers of the values that are added, shape (sums, _FAN_IN); short rows end in the zero.

    The zero stands after all values. The last round has a sum for each set, in their order.
    """
    found: list[list[int]] = [[] for _ in range(count)]
    for i, own in enumerate(sets):
        for number in own:
            found[number].append(i)
    members: list[Sequence[int]] = list(found)
    given, levels = len(sets), []
    while True:
        rows: list[list[int]] = []
        for i, numbers in enumerate(members):
            first = len(rows)
            for start in range(0, max(len(numbers), 1), _FAN_IN):
                part = list(numbers[start : start + _FAN_IN])
                rows.append(part + [given] * (_FAN_IN - len(part)))
            members[i] = range(first, len(rows))
        levels.append(torch.tensor(rows, dtype=torch.int64, device="cpu"))
        if len(rows) == count:
            return levels
        given = len(rows)
