"""Which step each update takes, the fused one or the tensor step, and in how many passes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hf_pdyn.optim import fused as fused_kernels
from hf_pdyn.optim import tensor_step
from hf_pdyn.optim.fused import FusedStep
from hf_pdyn.optim.hyperparameters import why_tensor_step_only
from hf_pdyn.optim.step_work import SUMS, Advance, StepSums, Task, Update, squares_to_match
from hf_pdyn.tensors.sharding import Piece

Match = Callable[[Sequence[Update], Tensor], Tensor]


class StepDispatch:
    """Gives every update of a step to the fused step or to the tensor step; the choice is made once for each device.

    Args:
        params: everything the optimizer steps, with a gradient or without: the choice must not change.
        foreach, fused: as in `Padam`.
    """

    def __init__(self, params: Iterable[Tensor], *, foreach: bool | None, fused: bool | None) -> None:
        self._insists = bool(fused)
        self._may_fuse = fused is None and foreach is None
        self._tensor_step: Advance = partial(tensor_step.advance, foreach=foreach)
        self._numels: dict[torch.device, int] = {}
        for param in params:  # of a DTensor, the whole: all processes choose alike
            self._numels[param.device] = self._numels.get(param.device, 0) + param.numel()
        self._fused: dict[torch.device, FusedStep | None] = {}
        for device in self._numels:  # now, before a step has begun
            self._fused_on(device)

    def _fused_on(self, device: torch.device) -> FusedStep | None:
        if device not in self._fused:
            module = None
            if self._insists:
                module = fused_kernels.fused_on(device)
            elif self._may_fuse:  # for parameters that have moved there since, by what the optimizer steps in all
                numel = self._numels.get(device, sum(self._numels.values()))
                module = fused_kernels.fused_if_worth_it(device, numel)
            self._fused[device] = module
        return self._fused[device]

    def step(
        self,
        updates: Sequence[Update],
        request: StepSums | None,
        match: Match | None,
        skip: Tensor | None = None,
    ) -> Repeat | None:
        """Do the whole step, and answer `request`; nothing moves, and the answer is NaN, where `skip` is not 0.

        match: makes of the updates, and of the squares of each one's direction and of that at p=1/2, shape
        (len(updates), 2), the scalar c_t. It needs them all before a parameter moves, so the moments are read twice.

        Returns what `repeat` takes, or None if any update took the tensor step.
        """
        clip_factor = None if request is None else request.clip_factor
        passes = _passes(request, matched=match is not None)
        parts = self._parts(updates, clip_factor)
        clipped = clip_factor is not None
        skipping = skip is not None
        if not self._trusted(parts, [tasks | sums for tasks, sums in passes], clipped=clipped, skipping=skipping):
            parts = self._parts(updates, clip_factor)
        for part in parts:
            part.skip = skip
        _do(parts, passes, request, match)
        if any(part.fused is None for part in parts):
            return None
        number = {id(update): i for i, update in enumerate(updates)}
        indices = [[number[id(update)] for update in part.updates] for part in parts]
        return Repeat(parts, indices, {(tuple(passes), clipped)})

    def repeat(
        self,
        last: Repeat,
        grads: Sequence[Tensor],
        times: Sequence[Any],
        request: StepSums | None,
        match: Match | None,
    ) -> bool:
        """Do the step `last` again, of the same tensors with these gradients and step counts; False if that cannot be.

        Tensors that had a group and a step count in common have them still.
        """
        clip_factor = None if request is None else request.clip_factor
        passes = _passes(request, matched=match is not None)
        if not self._trusts(last, passes, grads, clipped=clip_factor is not None):
            return False
        at = list(map(Tensor.data_ptr, grads))
        for part, indices in zip(last.parts, last.indices, strict=True):
            whole = len(last.parts) == 1
            if not part.follow(*((at, times) if whole else ([values[i] for i in indices] for values in (at, times)))):
                return False
        for part in last.parts:
            part.begin(clip_factor)
        _do(last.parts, passes, request, match)
        return True

    def _parts(self, updates: Sequence[Update], clip_factor: Tensor | None) -> list[_Part]:
        parts: dict[tuple[torch.device, bool], _Part] = {}
        device = module = part = None
        for update in updates:
            theta_device = update.theta.device
            if theta_device != device:
                device, module, part = theta_device, self._fused_on(theta_device), None
            taken = module is not None and (fused_kernels.takes(module, update) or self._refuse(update))
            step = module if taken else None
            if part is None or part.fused is not step:
                part = parts.get((theta_device, step is None))
            if part is None:
                part = parts[theta_device, step is None] = _Part(
                    [], step, self._tensor_step if step is None else step.advance, clip_factor
                )
            part.updates.append(update)
        return list(parts.values())

    def _trusted(
        self, parts: Sequence[_Part], passes: Sequence[Task], *, clipped: bool, skipping: bool = False
    ) -> bool:
        """False where a kernel is wrong, and is used no more; RuntimeError if the user insists on it."""
        trusted = True
        for part in parts:
            if part.fused is not None:
                device = part.updates[0].theta.device
                reason = fused_kernels.why_distrusted(
                    device, part.fused, part.updates, passes, clipped=clipped, skipping=skipping
                )
                if reason is not None and self._insists:
                    raise RuntimeError(f"{reason} Leave fused at None, or set it to False: both take the tensor step.")
                if reason is not None:
                    fused_kernels.warn_once(reason)
                    self._fused[device], trusted = None, False
        return trusted

    def _trusts(
        self, last: Repeat, passes: Sequence[tuple[Task, Task]], grads: Sequence[Tensor], *, clipped: bool
    ) -> bool:
        """Whether the kernels of `last` are right with these passes too; each set of them is looked at once."""
        key = tuple(passes), clipped
        if key in last.trusted:
            return True
        updates = [
            (update, i)
            for part, indices in zip(last.parts, last.indices, strict=True)
            for update, i in zip(part.updates, indices, strict=True)
        ]
        released = [update.grad for update, _ in updates]
        for update, i in updates:
            update.grad = grads[i]
        try:
            trusted = self._trusted(last.parts, [tasks | sums for tasks, sums in passes], clipped=clipped)
        finally:
            for (update, _), grad in zip(updates, released, strict=True):
                update.grad = grad
        if trusted:
            last.trusted.add(key)
        return trusted

    def _refuse(self, update: Update) -> bool:
        """False, unless the user insists."""
        if self._insists:
            other = why_tensor_step_only(update.group)
            raise RuntimeError(
                "fused=True needs plain tensors without gaps or overlaps, moments beside them and dtypes it knows, got "
                f"a parameter of {update.theta.dtype} with strides {update.theta.stride()} and a gradient of "
                f"{update.grad.dtype}{'' if other is None else f'; {other}'}. "
                "Leave fused at None, and the tensor step takes such tensors."
            )
        return False


def _passes(request: StepSums | None, *, matched: bool) -> list[tuple[Task, Task]]:
    """What each pass over the updates does, and what it sums."""
    before, after = (Task(0), Task(0)) if request is None else request.tasks
    if matched:
        return [(Task.MOMENTS | Task.DIRECTION, before), (Task.APPLY, after)]
    return [(Task.MOMENTS | Task.APPLY, before | after)]


def _do(
    parts: Sequence[_Part], passes: Sequence[tuple[Task, Task]], request: StepSums | None, match: Match | None
) -> None:
    for part in parts:
        part.do(*passes[0])
    if match is not None:
        scale = match([update for part in parts for update in part.updates], _squares(parts))
        for part in parts:
            part.do(*passes[1], scale)
    if request is not None:
        try:
            _answer(request, parts)
        except Exception as error:  # the step is taken, and whoever asked will say what failed
            request.failure = error


@dataclass(eq=False)
class Repeat:
    """A step that was all fused: its parts, which updates they have, and with which passes kernels are trusted."""

    parts: list[_Part]
    indices: list[list[int]]
    trusted: set[tuple[Any, bool]]


@dataclass(eq=False)
class _Part:
    """Updates of one device that `advance` takes.

    fused: None is the tensor step. A fused step sums in passing what a request asks for; the tensor step does so in a
    pass of its own once the step is taken, so that a failure there leaves the step whole.
    """

    updates: list[Update]
    fused: FusedStep | None
    advance: Advance
    clip_factor: Tensor | None
    sums: Tensor | None = None
    later: Task = Task.NOTHING
    scale: Tensor | None = None
    tables: Any = None
    thetas: list[Tensor] = field(default_factory=list)
    pieces: list[Piece] | None = None
    skip: Tensor | None = None

    def begin(self, clip_factor: Tensor | None) -> None:
        """Forget the last step."""
        self.clip_factor, self.sums, self.scale, self.later = clip_factor, None, None, Task.NOTHING

    def follow(self, grads_at: Sequence[int], times: Sequence[Any]) -> bool:
        """As the fused step's tables do."""
        return self.tables is not None and self.tables.follow(grads_at, times)

    def do(self, tasks: Task, sums: Task, scale: Tensor | None = None) -> None:
        """Do `tasks` now, and `sums` now or in `answer`."""
        self.scale = scale
        if self.fused is not None:
            self._advance(tasks | sums)
        else:
            self._advance(tasks)
            self.later |= sums
        if self.fused is not None and tasks & Task.APPLY:
            # Behind autograd's back, which must know that what a graph has saved is no more.
            self.thetas = self.thetas or [update.theta for update in self.updates]
            torch.autograd.graph.increment_version(self.thetas)

    def answer(self) -> tuple[list[Piece], Tensor]:
        """The pieces, and their STEP_SUMS."""
        if self.later:
            self._advance(self.later)
        assert self.sums is not None
        if self.skip is not None:
            self.sums = torch.where(self.skip.to(self.sums.device) == 0, self.sums, math.nan)
        if self.pieces is None:
            self.pieces = [update.piece for update in self.updates if update.piece is not None]
        if len(self.pieces) < len(self.sums):
            return self.pieces, self.sums[: len(self.pieces)]  # what nobody asked for comes last
        return self.pieces, self.sums

    def _advance(self, tasks: Task) -> None:
        if self.fused is not None and self.tables is None:
            self.tables = self.fused.Tables(self.updates)
        options: dict[str, Any] = {} if self.tables is None else {"tables": self.tables}
        if self.skip is not None:
            options["skip"] = self.skip
        sums = self.advance(self.updates, tasks, scale=self.scale, clip_factor=self.clip_factor, **options)
        # Of two passes, each leaves 0 what the other gives.
        self.sums = sums if self.sums is None else self.sums + sums


def _squares(parts: Sequence[_Part]) -> Tensor:
    found = [squares_to_match(part.sums) for part in parts if part.sums is not None]
    return torch.cat([squares.to(found[0]) for squares in found]) if found else torch.zeros(0, 2)


def _answer(request: StepSums, parts: Sequence[_Part]) -> None:
    answers = [part.answer() for part in parts]
    request.summed = answers[0][0] if len(answers) == 1 else [piece for pieces, _ in answers for piece in pieces]
    if answers:
        rows = [sums[:, : len(SUMS)] if request.measure else sums for _, sums in answers]
        request.rows = rows[0] if len(rows) == 1 else torch.cat([row.to(rows[0]) for row in rows])
