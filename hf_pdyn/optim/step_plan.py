"""What a step has found out about its tensors, kept for the next: to look at each anew takes longer than to step it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from hf_pdyn.optim.dispatch import Repeat
from hf_pdyn.optim.hyperparameters import TENSOR_STEP_ONLY
from hf_pdyn.optim.step_work import Update
from hf_pdyn.tensors.sharding import Piece

_AGREED = ("amsgrad", "weight_correction", *TENSOR_STEP_ONLY)
"""Settings of a group on which depends which kernel takes its tensors, and which tensors those are."""


class StepPlan:
    """The updates of a step whose tensors are plain and lie in a row; `gradients` tells whether they still hold.

    Args:
        groups, state: the optimizer's.
        updates: of the step, that `can_be_planned`; of a whole parameter with a gradient each, or of a part of it.
        pieces: what statistics asked for, which decides on their order.
        last: how they were stepped.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        state: Mapping[Tensor, dict[str, Any]],
        updates: Sequence[Update],
        pieces: Sequence[Piece] | None,
        last: Repeat,
    ) -> None:
        self.last = last
        self._pieces = pieces
        self._groups = list(groups)
        self._agreed = _agreed(groups)
        self._params = _params(groups)
        self._has_gradient = [param.grad is not None for param in self._params]
        self._all_have = all(self._has_gradient)
        stepped = [param for param in self._params if param.grad is not None]
        number = {id(param): i for i, param in enumerate(stepped)}
        self._order = [number[id(update.holder)] for update in updates]
        self._in_order = self._order == list(range(len(stepped)))
        self._cuts = [None if update.theta is update.holder else _cut(update) for update in updates]
        self._any_cut = any(self._cuts)
        of_param = {id(update.holder): update for update in updates}  # any part of it, where it is cut
        by_param = [of_param[id(param)] for param in stepped]

        self._state_params, self._state_values = list(state), list(state.values())
        self._next_counts = [update.t + 1 for update in by_param]
        self.states = [state[param] for param in stepped]
        self._thetas = stepped
        self._moments = [
            (name, [state[update.holder][name] for update in by_param if getattr(update, name) is not None])
            for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "weight_correction")
        ]
        self._having = {
            name: [
                state for state, update in zip(self.states, by_param, strict=True) if getattr(update, name) is not None
            ]
            for name, _ in self._moments
        }
        self._fixed = [stepped, *(moments for _, moments in self._moments)]
        self._addresses = self._addresses_now()
        self._numels = list(map(Tensor.numel, stepped))
        self._grad_types = [param.grad.dtype for param in stepped if param.grad is not None]

    def gradients(
        self,
        groups: Sequence[dict[str, Any]],
        state: Mapping[Tensor, dict[str, Any]],
        pieces: Sequence[Piece] | None,
    ) -> list[Tensor] | None:
        """The gradients of the stepped parameters, in their order in `groups`; None where anything else is new.

        Fewer looks than at a first step, as they are taken for each tensor and step: other data of a parameter or a
        moment (another device, dtype, size or memory format) has another address, or is a view of the old.
        """
        if not (pieces is self._pieces and _same(groups, self._groups) and _agreed(groups) == self._agreed):
            return None
        params = _params(groups)
        if not (_same(params, self._params) and _same(state.values(), self._state_values)):
            return None
        if not _same(state, self._state_params):
            return None
        grads: list[Any] = [param.grad for param in params]
        if not self._all_have:
            if [grad is not None for grad in grads] != self._has_gradient:
                return None
            grads = [grad for grad in grads if grad is not None]
        if set(map(type, grads)) != {Tensor} or [grad.dtype for grad in grads] != self._grad_types:
            return None
        for name, moments in self._moments:
            if moments and not _same([state.get(name) for state in self._having[name]], moments):
                return None
        try:
            in_a_row = all(map(Tensor.is_contiguous, grads)) and all(map(Tensor.is_contiguous, self._thetas))
        except RuntimeError:  # a sparse gradient, of some layouts; of others it is not contiguous
            return None
        if not in_a_row or any(map(Tensor.is_neg, grads)):
            return None
        if not list(map(Tensor.numel, grads)) == self._numels == list(map(Tensor.numel, self._thetas)):
            return None
        return grads if self._addresses_now() == self._addresses else None

    def counts_on(self, times: Sequence[float]) -> bool:
        """Whether these are the counts after those of the step before, for every parameter."""
        as_expected = times == self._next_counts
        self._next_counts = [t + 1 for t in times]
        return as_expected

    def of_updates(self, grads: list[Tensor], times: list[Any]) -> tuple[list[Tensor], list[Any]]:
        """The gradient and the step count of every update, from those of the stepped parameters."""
        if not self._in_order:
            grads, times = [grads[i] for i in self._order], [times[i] for i in self._order]
        if self._any_cut:
            pairs = zip(grads, self._cuts, strict=True)
            grads = [grad if cut is None else grad.view(-1)[cut] for grad, cut in pairs]
        return grads, times

    def _addresses_now(self) -> list[int]:
        return list(map(Tensor.data_ptr, chain.from_iterable(self._fixed)))


def _params(groups: Sequence[dict[str, Any]]) -> list[Tensor]:
    return [param for group in groups for param in group["params"]]


def _agreed(groups: Sequence[dict[str, Any]]) -> list[Any]:
    return [group[name] for group in groups for name in _AGREED]


def _same(found: Any, kept: Sequence[Any]) -> bool:
    """Whether they are the same objects in the same order."""
    return len(found) == len(kept) and all(map(is_, found, kept))


def can_be_planned(updates: Sequence[Update]) -> bool:
    """Whether all updates are of plain tensors in a row, whole or cut, of which a fused step has taken addresses."""
    return bool(updates) and all(
        update.checked is not None
        and update.grad.layout == torch.strided
        and (update.theta is update.holder or _is_cut(update))
        for update in updates
    )


def _is_cut(update: Update) -> bool:
    """Whether it is a part of a plain holder whose elements, and those of its gradient, lie in a row."""
    holder, grad = update.holder, update.holder.grad
    plain = type(holder) in (Tensor, Parameter) and type(grad) is Tensor and update.theta.dtype == holder.dtype
    return plain and holder.is_contiguous() and grad is not None and grad.is_contiguous()


def _cut(update: Update) -> slice:
    return slice(update.start, update.start + update.theta.numel())
