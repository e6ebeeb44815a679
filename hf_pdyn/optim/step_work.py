"""What one step does to one tensor, and what it is asked to sum on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntFlag
from typing import Any, Protocol

import torch
from torch import Tensor

from hf_pdyn.tensors.sharding import Piece

SUMS = ("grad_sq", "update_sq", "param_sq", "v_hat_sum", "one_norm", "N_p", "numel", "ruled_by_eps", "moved")
"""What a measured step sums over a tensor: additive over tensors, and over processes that hold shards of them.

Squares of the gradient as the optimizer was given it, of the update without weight decay and of the parameter after
the step; v_hat; of the gradient before clipping, the perturbed one-norm and N_p; the number of elements; over those
whose v is not 0, eps / (v_hat + eps), and their number. A step that is not measured has the first alone.
"""

TO_MATCH = ("direction_sq", "adam_sq")
"""Squares of the direction m_hat / (v_hat + eps)^p, and of the one at p=1/2: what `update_scale="adam"` compares."""

STEP_SUMS = (*SUMS, *TO_MATCH)
"""The columns that a fused or a tensor step returns; a column that was not asked for is 0."""


def squares_to_match(sums: Tensor) -> Tensor:
    """The columns TO_MATCH of STEP_SUMS."""
    return sums[:, len(SUMS) :]


class Advance(Protocol):
    """A fused or a tensor step."""

    def __call__(
        self,
        updates: Sequence[Update],
        tasks: Task,
        *,
        scale: Tensor | None = None,
        clip_factor: Tensor | None = None,
        skip: Tensor | None = None,
    ) -> Tensor:
        """Do `tasks` with `updates`, which are of one device; returns their sums, shape (len(updates), len(STEP_SUMS)).

        scale: c_t, which multiplies the update. clip_factor: divides the gradient in MEASURE's norms. skip: a 0-d
        tensor; where it is not 0 nothing moves, and sums mean nothing.
        """


class Task(IntFlag):
    """What a fused or a tensor step is asked to do with a list of updates; any combination.

    MOMENTS: let them take in the gradient. APPLY: move theta. The others fill columns of STEP_SUMS: GRADIENT grad_sq;
    DIRECTION, in a pass that does not APPLY, those TO_MATCH; MEASURE what else can be told before theta moves;
    PARAMETER update_sq and param_sq.
    """

    NOTHING = 0
    MOMENTS = 1
    APPLY = 2
    GRADIENT = 4
    DIRECTION = 8
    MEASURE = 16
    PARAMETER = 32


@dataclass(slots=True, eq=False)
class Update:
    """One tensor's part of a step: what this process holds of a parameter, or a piece of that.

    group: the parameter group, whose settings hold. holder: the parameter as the optimizer knows it.
    theta, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, weight_correction: views of one shape, complex ones as pairs of
    reals; the last two None where there is none.
    t: the step count, 1 at the first; a 0-d float32 tensor where it stands on the device.
    piece: what statistics call it; None where nobody asked.
    number, start: which parameter of the optimizer this is of, and the index of its first element there. With the step
    count they decide how moments are rounded that are not float32 (`state_format`).

    addresses, variant: where the tensors are, and which kernel takes them; known during a fused step.
    checked: what `fused.takes` found at an earlier step, so that it need not look at everything again.
    """

    group: Mapping[str, Any]
    holder: Tensor
    theta: Tensor
    grad: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    max_exp_avg_sq: Tensor | None
    t: Any
    piece: Piece | None = None
    number: int = 0
    start: int = 0
    weight_correction: Tensor | None = None
    addresses: tuple[int, ...] = field(default=(), init=False)
    variant: Any = field(default=None, init=False)
    checked: Any = field(default=None, init=False)

    @property
    def second_moment(self) -> Tensor:
        """What stands under the power: v, or its running maximum."""
        return self.exp_avg_sq if self.max_exp_avg_sq is None else self.max_exp_avg_sq

    def of(self, piece: Piece) -> Update:
        """The part of this update, of a flat holder, that is `piece`."""
        return self._cut(piece.start or 0, piece.numel or 0, piece)

    def without(self, pieces: Sequence[Piece]) -> Iterator[Update]:
        """What of this update is in none of `pieces`: the padding of a flat holder, or all of it."""
        if not pieces:
            yield self
        else:
            begin = 0
            for start, numel in sorted((piece.start or 0, piece.numel or 0) for piece in pieces):
                if start > begin:
                    yield self._cut(begin, start - begin, None)
                begin = start + numel
            if begin < self.theta.numel():
                yield self._cut(begin, self.theta.numel() - begin, None)

    def parts(self, numel: int | None) -> Iterator[Update]:
        """This update in parts of so many elements at most, where they lie in a row; itself if `numel` is None."""
        found = (self.theta, self.grad, self.exp_avg, self.exp_avg_sq, self.max_exp_avg_sq, self.weight_correction)
        tensors = [tensor for tensor in found if tensor is not None]
        whole = self.theta.numel()
        if numel is None or whole <= numel or not all(tensor.is_contiguous() for tensor in tensors):
            yield self
            return
        for start in range(0, whole, numel):
            yield self._cut(start, min(numel, whole - start), self.piece)

    def _cut(self, start: int, numel: int, piece: Piece | None) -> Update:
        names = ("theta", "grad", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "weight_correction")
        whole = {name: getattr(self, name) for name in names}
        cut: dict[str, Any] = {
            name: None if value is None else value.view(-1)[start : start + numel] for name, value in whole.items()
        }
        return replace(self, piece=piece, start=self.start + start, **cut)


@dataclass(eq=False)
class StepSums:
    """A request to the coming step, and what came of it.

    pieces: of what. measure: all of SUMS, not "grad_sq" alone. clip_factor: a 0-d tensor by which clipping
    multiplied the gradients, None where nothing clips.

    rows: shape (len(summed), len(SUMS)) in float64, of the pieces that had a gradient; without `measure` the first
    column, "grad_sq", is all that counts, whatever is beside it. None where the step was skipped, or where summing
    failed: then `failure` is the reason.
    """

    pieces: Sequence[Piece]
    measure: bool
    clip_factor: Tensor | None = None
    rows: Tensor | None = None
    summed: Sequence[Piece] = ()
    failure: Exception | None = None

    @property
    def tasks(self) -> tuple[Task, Task]:
        """The sums that are asked for: those that can be taken before a parameter moves, and the rest."""
        return (Task.GRADIENT | Task.MEASURE, Task.PARAMETER) if self.measure else (Task.GRADIENT, Task.NOTHING)


def group_lr(group: Mapping[str, Any]) -> Any:
    """The group's learning rate: a number, also where a tensor holds it that costs nothing to read, or a 0-d tensor."""
    lr = group["lr"]
    if not isinstance(lr, Tensor):
        return lr
    return lr.item() if lr.device.type == "cpu" else lr.view(())


def as_scalar(value: float | Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A 0-d tensor; a number becomes an argument of a kernel, which waits for no device."""
    if isinstance(value, Tensor):
        return value.to(device=device, dtype=dtype).view(())
    return torch.full((), value, device=device, dtype=dtype)
