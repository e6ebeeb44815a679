"""M(s) of an optimizer's moments, by scope (see `policy.allocation_curve`), in one pass over them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hf_pdyn.measure.moments import Moments, moments_of, relative_lr
from hf_pdyn.measure.power_kernel import PowerKernel, is_worth_it
from hf_pdyn.measure.step_statistics import StepStatistics
from hf_pdyn.measure.windows import Scope
from hf_pdyn.optim.step_work import group_lr
from hf_pdyn.policy.allocation_curve import COUNT, FIRST, STEP, PowerMoments
from hf_pdyn.tensors.power_sums import part_size, power_sums
from hf_pdyn.tensors.sharding import Piece, group_by_param


@dataclass(frozen=True)
class Found:
    """M by scope; a scope without finite values is left out. reason: why there is none, None where there are some."""

    moments: dict[Scope, PowerMoments]
    reason: str | None


class PowerMomentsReader:
    """Takes M from what `statistics` watches, as it stands after a step.

    Groups count with their learning rate relative to the largest, as they do in the whole update.

    Args:
        statistics: of the optimizer.
        per_layer: also by layer, not by pathway and component alone.
    """

    def __init__(self, statistics: StepStatistics, *, per_layer: bool) -> None:
        self._statistics = statistics
        self._per_layer = per_layer
        self._scopes = [scope for scope in statistics.scopes if self._wants(scope)]

    @property
    def most_curves(self) -> int:
        """Scopes that a reading can have."""
        return len(self._scopes)

    def _wants(self, scope: Scope) -> bool:
        return scope.group is None and (self._per_layer or scope.layer is None)

    @torch.no_grad()
    def read(self) -> Found:
        """M of all scopes. Waits for the device; where parameters are sharded, every process must come to it."""
        reasons: set[str] = set()
        failure: Exception | None = None
        try:
            sums = self._sums(reasons)
        except Exception as error:  # the others wait for this process's part
            failure, sums = error, self._nothing() * math.nan
        sums = self._statistics.add_up(sums)
        if failure is not None:
            raise failure
        return self._found(sums, reasons)

    def _sums(self, reasons: set[str]) -> Tensor:
        """This process's share, shape (len(scopes), COUNT)."""
        column = {scope: i for i, scope in enumerate(self._scopes)}
        sums, cells = self._nothing(), self._cells()
        kernel = PowerKernel(len(cells)) if is_worth_it(self._numel_on_cpu()) else None
        for row, (scopes, own) in enumerate(cells.items()):
            pairs = self._pairs(own, reasons, kernel, row)
            first = next(pairs, None)
            if first is not None:
                found = power_sums(chain([first], pairs), first=FIRST, step=STEP, count=COUNT)
                sums[[column[scope] for scope in scopes]] += found.to(sums)
        if kernel is not None:
            for scopes, found in zip(cells, kernel.sums().to(sums), strict=True):
                sums[[column[scope] for scope in scopes]] += found
        return sums

    def _cells(self) -> dict[tuple[Scope, ...], list[Piece]]:
        """The pieces that enter the same scopes: what is small is summed in one go."""
        cells: dict[tuple[Scope, ...], list[Piece]] = {}
        for piece, scopes in self._statistics.scopes_of.items():
            wanted = tuple(filter(self._wants, scopes))
            cells.setdefault(wanted, []).append(piece)
        return cells

    def _numel_on_cpu(self) -> int:
        holders = {piece.holder for piece in self._statistics.scopes_of}
        return sum(holder.numel() for holder in holders if holder.device.type == "cpu")

    def _pairs(
        self, pieces: Sequence[Piece], reasons: set[str], kernel: PowerKernel | None, row: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """What `power_sums` takes of the pieces, without those that the kernel takes for its row."""
        optimizer = self._statistics.optimizer
        group_of = group_by_param(optimizer)
        largest = _largest_lr(optimizer)
        for piece in pieces:
            group = group_of[piece.holder]
            moments = moments_of(optimizer, group, piece)
            if not isinstance(moments, Moments):
                reasons.add(moments)
                continue
            rate = relative_lr(group, largest)
            weight = rate * rate * self._statistics.share(piece)
            if kernel is not None and kernel.takes(moments):
                kernel.add(moments, float(weight), row)
                continue
            for w, x in moments.weighted(part_size(moments.exp_avg.device)):
                yield w.mul_(weight), x

    def _nothing(self) -> Tensor:
        return self._statistics.zeros(len(self._scopes), COUNT)

    def _found(self, sums: Tensor, reasons: set[str]) -> Found:
        logs = sums.cpu().log()
        moments = {
            scope: PowerMoments(tuple(row.tolist()))
            for scope, row in zip(self._scopes, logs, strict=True)
            if row.isfinite().all()
        }
        reason = None if moments else "; ".join(sorted(reasons)) or "no moment is finite"
        return Found(moments, reason)


def _largest_lr(optimizer: Optimizer) -> Any:
    rates = [group_lr(group) for group in optimizer.param_groups]
    tensors = [rate for rate in rates if isinstance(rate, Tensor)]
    if not tensors:
        return max(rates)
    return torch.stack([torch.as_tensor(rate).to(tensors[0]) for rate in rates]).max()
