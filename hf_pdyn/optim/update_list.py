"""The updates of a step, kept for the next one: to make and order them anew takes longer than a small step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_pdyn.optim import weight_correction
from hf_pdyn.optim.step_work import Update
from hf_pdyn.tensors.sharding import Piece, is_dtensor, local, local_like, start_of

_NO_GRADIENT = torch.empty(0, device="cpu")


class UpdateList:
    """The updates of one optimizer's steps."""

    def __init__(self) -> None:
        self._kept: list[Update] = []
        self._ordered: list[Update] = []
        self._pieces: Sequence[Piece] | None = None

    def of_step(
        self,
        stepped: Sequence[tuple[dict[str, Any], Tensor, Tensor]],
        numbers: Sequence[int],
        states: Sequence[Mapping[str, Tensor]],
        times: Sequence[Any],
        pieces: Sequence[Piece] | None,
    ) -> list[Update]:
        """One update for each (group, parameter, gradient), or the parts of it that `pieces` are, in their order.

        numbers: of the parameters among all.

        An update is kept as long as its group, parameter and moments are the same objects. `release` it after the step.
        """
        before = self._kept if len(self._kept) == len(stepped) else [None] * len(stepped)
        updates: list[Update] = []
        for (group, param, grad), number, state, t, kept in zip(stepped, numbers, states, times, before, strict=True):
            if kept is None or not _is_of(kept, group, param, state):
                updates.append(_update(group, param, grad, state, t, number))
            else:
                kept.grad, kept.t, kept.number = grad, t, number
                updates.append(kept)
        if pieces is not self._pieces or updates != self._kept:
            for update in updates:
                update.piece = None
            self._ordered = updates if pieces is None else list(_by_piece(updates, pieces))
            # Updates that were cut apart hold a part of their gradient.
            self._pieces = pieces if set(self._ordered) == set(updates) else ()
        self._kept = updates
        return self._ordered

    def release(self) -> None:
        """Keep no gradient alive until the next step."""
        for update in (*self._kept, *self._ordered):  # cut updates hold views of the gradients too
            update.grad = _NO_GRADIENT
        if self._pieces == ():
            self._ordered = []


def _is_of(update: Update, group: dict[str, Any], param: Tensor, state: Mapping[str, Tensor]) -> bool:
    """Whether `update` is of these objects as they are, not of a view that another step needs anew."""
    return (
        update.theta is param
        and update.group is group
        and update.exp_avg is state["exp_avg"]
        and update.exp_avg_sq is state["exp_avg_sq"]
        and update.max_exp_avg_sq is (state["max_exp_avg_sq"] if group["amsgrad"] else None)
        and update.weight_correction is weight_correction.of(group, state)
    )


def _update(
    group: dict[str, Any], param: Tensor, grad: Tensor, state: Mapping[str, Tensor], t: Any, number: int
) -> Update:
    maximum = state["max_exp_avg_sq"] if group["amsgrad"] else None
    update = Update(group, param, param, grad, state["exp_avg"], state["exp_avg_sq"], maximum, t, number=number)
    update.weight_correction = correction = weight_correction.of(group, state)
    if is_dtensor(param) or param.is_complex():
        update.theta, update.grad = local_reals(param), local_reals(local_like(grad, param))
        update.exp_avg, update.exp_avg_sq = local_reals(update.exp_avg), local_reals(update.exp_avg_sq)
        update.max_exp_avg_sq = None if maximum is None else local_reals(maximum)
        update.weight_correction = None if correction is None else local_reals(correction)
        update.start = start_of(param)
    return update


def _by_piece(updates: Sequence[Update], pieces: Sequence[Piece]) -> Iterator[Update]:
    """Updates of the pieces, in their order, then what is left; those of flat holders are cut apart."""
    of_holder = {id(update.holder): update for update in updates}
    cut: dict[int, list[Piece]] = {}
    for piece in pieces:
        update = of_holder.get(id(piece.holder))
        if update is None:
            continue
        if piece.start is None:
            update.piece = piece
            yield of_holder.pop(id(piece.holder))
        else:
            cut.setdefault(id(piece.holder), []).append(piece)
            yield update.of(piece)
    for holder, update in of_holder.items():
        yield from update.without(cut.get(holder, []))


def local_reals(tensor: Tensor) -> Tensor:
    """A view of what this process holds of `tensor`, as pairs of reals where it is complex."""
    tensor = local(tensor)
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
