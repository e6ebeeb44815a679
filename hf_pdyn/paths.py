"""How a step is computed: which of its updates are fused and which are plain, and in how many passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

from hf_pdyn import fused as fused_kernels
from hf_pdyn import plain
from hf_pdyn.updates import SUMS, StepSums, Task, Update

Match = Callable[[Sequence[Update], Tensor], Tensor]


class Paths:
    """The paths that steps of `params` take, chosen once for every device.

    Args:
        params: everything the optimizer steps, with a gradient or without: the choice must not change.
        foreach, fused: as in `Padam`.
    """

    def __init__(self, params: Iterable[Tensor], *, foreach: bool | None, fused: bool | None) -> None:
        self._foreach, self._insists = foreach, bool(fused)
        numels: dict[torch.device, int] = {}
        for param in params:
            numels[param.device] = numels.get(param.device, 0) + param.numel()
        self._devices = list(numels)
        self._fused: dict[torch.device, fused_kernels.Advance | None] = {}
        for device, numel in numels.items():
            if fused:
                self._fused[device] = fused_kernels.advance_on(device)
            elif fused is None and foreach is None:
                self._fused[device] = fused_kernels.advance_if_worth_it(device, numel)

    def step(self, updates: Sequence[Update], request: StepSums | None, match: Match | None) -> None:
        """Do the whole step.

        match: makes of the updates, and of the squares of each one's direction and of that at p=1/2, shape
        (len(updates), 2), the scalar c_t. It needs them all before a parameter moves, so the moments are read twice.
        """
        parts = self._parts(updates, request)
        sums = Task(0) if request is None else Task.GRADIENT
        before, after = (Task.MEASURE, Task.PARAMETER) if request and request.measure else (Task(0), Task(0))
        if match is None:
            for part in parts:
                part.advance(Task.MOMENTS | Task.APPLY | sums | before | after)
        else:
            for part in parts:
                part.advance(Task.MOMENTS | Task.DIRECTION | sums | before)
            scale = match([update for part in parts for update in part.updates], _squares(parts))
            for part in parts:
                part.advance(Task.APPLY | after, scale)
        if request is not None:
            for part in parts:
                part.answer(request, alone=len(parts) == 1)

    def _parts(self, updates: Sequence[Update], request: StepSums | None) -> list[_Part]:
        parts: dict[tuple[torch.device, bool], list[Update]] = {}
        for device, here in self._by_device(updates):
            can_fuse = self._fused.get(device) is not None
            for update in here:
                parts.setdefault((device, can_fuse and self._takes(update)), []).append(update)
        return [
            _FusedPart(part, advance, request)
            if fused and (advance := self._fused[device])
            else _PlainPart(part, self._foreach_on(device), request)
            for (device, fused), part in parts.items()
        ]

    def _by_device(self, updates: Sequence[Update]) -> Iterable[tuple[torch.device, Sequence[Update]]]:
        if len(self._devices) == 1:
            return [(self._devices[0], updates)]
        by_device: dict[torch.device, list[Update]] = {}
        for update in updates:
            by_device.setdefault(update.theta.device, []).append(update)
        return by_device.items()

    def _takes(self, update: Update) -> bool:
        if fused_kernels.takes(update):
            return True
        if self._insists:
            raise RuntimeError(
                "fused=True needs tensors without gaps or overlaps and gradients of a dtype that the fused step knows, "
                f"got a parameter of {update.theta.dtype} with strides {update.theta.stride()} and a gradient of "
                f"{update.grad.dtype}. Leave fused at None, and the plain step takes such tensors."
            )
        return False

    def _foreach_on(self, device: torch.device) -> bool:
        return self._foreach if self._foreach is not None else device.type == "cuda"


class _PlainPart:
    """Updates of one device that take the plain path."""

    def __init__(self, updates: list[Update], foreach: bool, request: StepSums | None) -> None:
        self.updates = updates
        self.squares = torch.empty(0)
        note = request.note_update if request is not None and request.measure else None
        self._advance = partial(plain.advance, updates, foreach=foreach, note=note)

    def advance(self, tasks: Task, scale: Tensor | None = None) -> None:
        squares = self._advance(tasks, scale=scale)
        if squares is not None:
            self.squares = squares

    def answer(self, request: StepSums, *, alone: bool) -> None:
        """Nothing more: what only the step could see was noted on the way."""


class _FusedPart:
    """Updates of one device that take the fused path."""

    def __init__(self, updates: list[Update], advance: fused_kernels.Advance, request: StepSums | None) -> None:
        self.updates = updates
        self._advance = partial(advance, updates, clip_factor=None if request is None else request.clip_factor)
        self._sums: Tensor | None = None
        self._scale: Tensor | None = None

    def advance(self, tasks: Task, scale: Tensor | None = None) -> None:
        sums = self._advance(tasks, scale=scale)
        # Of two passes, each leaves 0 what the other gives.
        self._sums = sums if self._sums is None else self._sums + sums
        self._scale = scale

    @property
    def squares(self) -> Tensor:
        assert self._sums is not None
        return fused_kernels.squares(self._sums)

    def answer(self, request: StepSums, *, alone: bool) -> None:
        """All sums if these are all updates of the step, else what only the step could see."""
        assert self._sums is not None
        # What nobody asked for comes last.
        summed = [update.piece for update in self.updates if update.piece is not None]
        rows = fused_kernels.step_sums(self.updates, self._sums, self._scale, measured=request.measure)[: len(summed)]
        if alone:
            request.summed, request.rows = summed, rows
        elif request.measure:
            request.update_sq.update(zip(summed, rows[:, SUMS.index("update_sq")], strict=True))


_Part = _PlainPart | _FusedPart


def _squares(parts: Sequence[_Part]) -> Tensor:
    first = parts[0].squares if parts else torch.zeros(0, 2)
    return first if len(parts) <= 1 else torch.cat([part.squares.to(first) for part in parts])
