"""Which step each update takes, the fused one or the tensor step, and in how many passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

from hf_pdyn.optim import fused as fused_kernels
from hf_pdyn.optim import tensor_step
from hf_pdyn.optim.step_work import SUMS, StepSums, Task, Update

Match = Callable[[Sequence[Update], Tensor], Tensor]


class StepDispatch:
    """Gives every update of a step to the fused step or to the tensor step; the choice is made once for each device.

    Args:
        params: everything the optimizer steps, with a gradient or without: the choice must not change.
        foreach, fused: as in `Padam`.
    """

    def __init__(self, params: Iterable[Tensor], *, foreach: bool | None, fused: bool | None) -> None:
        self._foreach, self._insists = foreach, bool(fused)
        self._may_fuse = fused is None and foreach is None
        self._numels: dict[torch.device, int] = {}
        for param in params:  # of a DTensor, the whole: all processes choose alike
            self._numels[param.device] = self._numels.get(param.device, 0) + param.numel()
        self._fused: dict[torch.device, fused_kernels.Advance | None] = {}
        for device in self._numels:  # now, before a step has begun
            self._fused_on(device)

    def _fused_on(self, device: torch.device) -> fused_kernels.Advance | None:
        if device not in self._fused:
            advance = None
            if self._insists:
                advance = fused_kernels.advance_on(device)
            elif self._may_fuse:  # for parameters that have moved there since, by what the optimizer steps in all
                numel = self._numels.get(device, sum(self._numels.values()))
                advance = fused_kernels.advance_if_worth_it(device, numel)
            self._fused[device] = advance
        return self._fused[device]

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
            try:
                for part in parts:
                    part.answer(request, alone=len(parts) == 1)
            except Exception as error:  # the step is taken, and whoever asked will say what failed
                request.failure = error

    def _parts(self, updates: Sequence[Update], request: StepSums | None) -> list[_Part]:
        parts: dict[tuple[torch.device, fused_kernels.Advance | None], list[Update]] = {}
        here = advance = None
        for update in updates:
            device = update.theta.device
            if device != here:
                here, advance = device, self._fused_on(device)
            taken = advance if advance is not None and (fused_kernels.takes(update) or self._refuse(update)) else None
            parts.setdefault((device, taken), []).append(update)
        return [
            _FusedPart(part, advance, request) if advance else _PlainPart(part, self._foreach_on(device), request)
            for (device, advance), part in parts.items()
        ]

    def _refuse(self, update: Update) -> bool:
        """False, unless the user insists."""
        if self._insists:
            raise RuntimeError(
                "fused=True needs plain tensors without gaps or overlaps, moments beside them, dtypes it knows and "
                f'bias_correction="eq18", got a parameter of {update.theta.dtype} with strides '
                f"{update.theta.stride()}, a gradient of {update.grad.dtype} and {update.group['bias_correction']!r}. "
                "Leave fused at None, and the tensor step takes such tensors."
            )
        return False

    def _foreach_on(self, device: torch.device) -> bool:
        return self._foreach if self._foreach is not None else device.type == "cuda"


class _PlainPart:
    """Updates of one device that take the tensor step."""

    def __init__(self, updates: list[Update], foreach: bool, request: StepSums | None) -> None:
        self.updates = updates
        self.squares = torch.empty(0)
        note = request.note_update if request is not None and request.measure else None
        self._advance = partial(tensor_step.advance, updates, foreach=foreach, note=note)

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
        if tasks & Task.APPLY:
            # Behind autograd's back, which must know that what a graph has saved is no more.
            torch.autograd.graph.increment_version([update.theta for update in self.updates])
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
