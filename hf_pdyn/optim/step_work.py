"""What one step does to one tensor, and what it is asked to sum on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntFlag
from typing import Any

import torch
from torch import Tensor

from hf_pdyn.tensors.norms import two_norms
from hf_pdyn.tensors.sharding import Piece

SUMS = ("grad_sq", "update_sq", "param_sq", "v_hat_sum", "one_norm", "N_p", "numel")
"""What a measured step sums over a tensor: additive over tensors, and over processes that hold shards of them.

Squares of the gradient as the optimizer was given it, of the update without weight decay and of the parameter after
the step; v_hat; and of the gradient before clipping, the perturbed one-norm and N_p. A step that is not measured
has the first alone.
"""


class Task(IntFlag):
    """What a path is asked to do with a list of updates; any combination.

    MOMENTS: let them take in the gradient. APPLY: move theta. The others are sums: GRADIENT of the squared gradient;
    DIRECTION, in a pass that does not APPLY, of the squares of the direction and of the one at p=1/2; MEASURE of what
    else can be told before theta moves; PARAMETER of theta squared afterwards.
    """

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
    theta, grad, exp_avg, exp_avg_sq, max_exp_avg_sq: views of one shape, complex ones as pairs of reals.
    t: the step count, 1 at the first; a 0-d float32 tensor where it stands on the device.
    piece: what statistics call it; None where nobody asked.
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
        tensors = (self.theta, self.grad, self.exp_avg, self.exp_avg_sq, self.second_moment)
        whole = self.theta.numel()
        if numel is None or whole <= numel or not all(tensor.is_contiguous() for tensor in tensors):
            yield self
            return
        for start in range(0, whole, numel):
            yield self._cut(start, min(numel, whole - start), self.piece)

    def _cut(self, start: int, numel: int, piece: Piece | None) -> Update:
        names = ("theta", "grad", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")
        whole = {name: getattr(self, name) for name in names}
        cut: dict[str, Any] = {
            name: None if value is None else value.view(-1)[start : start + numel] for name, value in whole.items()
        }
        return replace(self, piece=piece, **cut)


@dataclass(eq=False)
class StepSums:
    """A request to the coming step, and what came of it.

    pieces: of what. measure: all of SUMS, not "grad_sq" alone. clip_factor: a 0-d tensor by which clipping
    multiplied the gradients, None where nothing clips.

    rows: shape (len(summed), len(SUMS)) in float64, of the pieces that had a gradient; without `measure` the column
    "grad_sq" alone. None where a part of the step took the tensor step, which does not sum. Then `update_sq`
    has what only the step could see, or `failure` the reason why not.
    """

    pieces: Sequence[Piece]
    measure: bool
    clip_factor: Tensor | None = None
    rows: Tensor | None = None
    summed: Sequence[Piece] = ()
    update_sq: dict[Piece, Tensor] = field(default_factory=dict)
    failure: Exception | None = None

    def note_update(self, update: Update, value: Tensor) -> None:
        """Learn what will be subtracted for `update`. Does not raise: the step must go on."""
        try:
            if update.piece is not None:
                square = two_norms([value])[0].square()
                before = self.update_sq.get(update.piece)  # of another part of it
                self.update_sq[update.piece] = square if before is None else before + square
        except Exception as error:
            self.failure = error

    @classmethod
    def joined(cls, requests: Sequence[StepSums]) -> StepSums | None:
        """One request for what several readers ask of a step; None without any."""
        if len(requests) <= 1:
            return requests[0] if requests else None
        pieces = {piece.place: piece for request in requests for piece in request.pieces}
        measuring = [request for request in requests if request.measure]
        factor = measuring[0].clip_factor if measuring else None
        return cls(list(pieces.values()), bool(measuring), factor)

    def pass_on(self, requests: Sequence[StepSums]) -> None:
        """Give what this joined request learned to those it was made of. Does not raise."""
        try:
            self._pass_on(requests)
        except Exception as error:
            for request in requests:
                request.failure = error

    def _pass_on(self, requests: Sequence[StepSums]) -> None:
        rows = {} if self.rows is None else dict(zip((p.place for p in self.summed), self.rows, strict=True))
        update_sq = {piece.place: value for piece, value in self.update_sq.items()}
        for request in requests:
            request.failure = self.failure
            request.update_sq = {p: update_sq[p.place] for p in request.pieces if p.place in update_sq}
            if self.rows is not None:
                request.summed = [piece for piece in request.pieces if piece.place in rows]
                width = len(SUMS) if request.measure else 1
                own = [rows[piece.place][:width] for piece in request.summed]
                request.rows = torch.stack(own) if own else self.rows[:0, :width]


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
