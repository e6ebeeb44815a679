"""What an optimizer's steps do to weights and to bias-like parameters, measured beside the update.

`StepStatistics` watches any torch optimizer through step hooks. After each step it reduces the gradients to
one small row of sums of squares on the device; nothing is moved to the host, nor combined between processes,
until a `Window` is read. Costlier quantities (update, parameter and perturbed norms, second moments) are
taken on the steps announced with `measure_next_step`.

Definitions follow *Information allocation dynamics* (IAD) Eq. 31: D_w and D_b are means over steps of the L2
norm of a whole group's gradient.
"""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hf_pdyn.common.never_fatal import give_up, never_fatal
from hf_pdyn.grouping import NAME, PATHWAYS, Label, label_parameters
from hf_pdyn.grouping.layer_names import LayerNames
from hf_pdyn.integrations.accelerate import unwrap_optimizer
from hf_pdyn.integrations.deepspeed import (
    want_one_step_for_all_groups,
    why_unreadable,
    zero_optimizer,
    zero_pieces,
)
from hf_pdyn.measure import implicit_bias
from hf_pdyn.measure.piece_sums import gradient_squares, has_gradient, measured_sums
from hf_pdyn.measure.windows import MEASURED, Scope, Window
from hf_pdyn.optim.clipping import UNCLIPPED, Clip, clip_factor, note_clip, take_clip
from hf_pdyn.optim.step_work import SUMS, StepSums
from hf_pdyn.tensors import norms
from hf_pdyn.tensors.membership import Membership
from hf_pdyn.tensors.sharding import (
    Piece,
    Shards,
    declare_fsdp1_shards,
    first_param,
    group_by_param,
    held,
    is_partial,
    local,
)

_ATTRIBUTE = "_hf_pdyn_statistics"


class StepStatistics:
    """Statistics of every step of `optimizer`, from now on.

    Args:
        optimizer: any torch optimizer, as it is or behind accelerate's and DeepSpeed's wrappers.
        model: gives parameters their names and labels; labels in the optimizer's groups take precedence.
        labels: instead of `label_parameters(model)`.

    `scopes` are the columns of statistics, `scopes_of` those that each piece of a parameter enters: its pathway, its
    component, its layer and its named group. `joined_layers` says which layers are taken as one where there are very
    many (`LayerNames`), and is None elsewhere. `unavailable` is None, or the reason why nothing can be measured here. A
    step that the optimizer skipped (`step_was_skipped`, as Padam has it) is none: it enters no window. `found_inf` is
    what an optimizer goes by that decides on the device whether it skips (torch's fused ones under a gradient scaler,
    Padam with capturable=True): a 0-d tensor, not 0 where the last step was skipped; None for other optimizers.

    Example:
        >>> optimizer = torch.optim.AdamW(build_param_groups(model), lr=1e-3)
        >>> window = StepStatistics.of(optimizer, model).window()
        >>> for batch in dataloader:
        ...     model(**batch).loss.backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> reading = window.read()
        >>> reading.weight_norm > 0 and reading.bias_norm > 0  # D_w and D_b, means over the steps
        True
    """

    def __init__(self, optimizer: Optimizer, model: nn.Module, *, labels: Mapping[str, Label] | None = None) -> None:
        self.windows: weakref.WeakSet[Window] = weakref.WeakSet()
        self.gave_up = False
        self._optimizer = unwrap_optimizer(optimizer)
        if _ATTRIBUTE in vars(self._optimizer):
            raise ValueError(
                f"One StepStatistics watches an optimizer, this {type(self._optimizer).__name__} has one already. "
                "StepStatistics.of(optimizer, model) returns it; every reader takes a window of its own."
            )
        self._measuring = False
        self._before: dict[Tensor, Tensor] = {}
        self._request: StepSums | None = None
        self._clip: Clip | None = None
        self._factor: Tensor | None = None
        self.found_inf: Tensor | None = None
        self.refresh(optimizer, model, labels=labels)
        self._optimizer.register_step_pre_hook(lambda _, args, kwargs: self._before_step(_closure(*args, **kwargs)))
        self._optimizer.register_step_post_hook(lambda *_: self._after_step())
        setattr(self._optimizer, _ATTRIBUTE, self)

    @classmethod
    def of(cls, optimizer: Optimizer, model: nn.Module) -> StepStatistics:
        """The one instance that watches `optimizer`, so that telemetry and control measure once."""
        found: StepStatistics | None = vars(unwrap_optimizer(optimizer)).get(_ATTRIBUTE)
        if found is None:
            found = cls(optimizer, model)
        elif not found.windows:
            found.refresh(optimizer, model)
        return found

    def refresh(self, optimizer: Optimizer, model: nn.Module, *, labels: Mapping[str, Label] | None = None) -> None:
        """Learn the optimizer's parameters anew: wrappers such as FSDP2 and ZeRO replace them."""
        labels = labels or label_parameters(model)
        self.unavailable = why_unreadable(optimizer)
        want_one_step_for_all_groups(self._optimizer)
        declare_fsdp1_shards(model)
        labelled: list[tuple[Piece | None, tuple[Scope, ...]]] = []
        stepped = [] if self.unavailable else [found for found in _stepped(optimizer, model) if found[0] in labels]
        layers = LayerNames(name for name, _, _ in stepped)
        self.joined_layers = layers.joined
        for name, group, piece in stepped:
            pathway = group.get("pathway") or labels[name].pathway
            component = group.get("component") or labels[name].component
            parts = [Scope(pathway), Scope(pathway, component=component), Scope(pathway, layers.of(name))]
            if NAME in group:
                parts.append(Scope(pathway, group=group[NAME]))
            labelled.append((piece, tuple(parts)))
        if not labelled and not self.unavailable:
            self.unavailable = "the optimizer steps tensors that are not the model's parameters"
        found = dict.fromkeys(scope for _, parts in labelled for scope in parts)
        self.scopes: tuple[Scope, ...] = tuple(sorted(found, key=_scope_order))
        column = {scope: i for i, scope in enumerate(self.scopes)}
        self.scopes_of = {piece: parts for piece, parts in labelled if piece is not None}
        columns = {piece: tuple(map(column.__getitem__, parts)) for piece, parts in self.scopes_of.items()}
        self._pieces = list(columns)
        self._pieces_of: dict[Tensor, list[Piece]] = {}
        for piece in self._pieces:
            self._pieces_of.setdefault(piece.holder, []).append(piece)
        self._known_pieces: Sequence[Piece] | None = None
        self._no_clip: Tensor | None = None
        self._shards = Shards(param for params in held(self._optimizer) for param in params)
        # A process that holds what others hold too gives its share of it. The last set is empty.
        shares = [self._shards.share(piece.holder) for piece in self._pieces]
        self._membership = Membership([columns[piece] for piece in self._pieces], shares, len(self.scopes) + 1)

    def window(self) -> Window:
        """A new interval that begins with the next step, and ends when nobody refers to the window any more.

        What was announced for a step that has not come (its forward pass failed, say) is void. A warning says why
        nothing can be read, as of the optimizer of another model.
        """
        if self.unavailable:
            warnings.warn(f"pdyn metrics of gradients and updates: {self.unavailable}.", stacklevel=2)
        take_clip(self._optimizer)  # of a step before this window
        self._measuring = self.gave_up = False
        window = Window(self.scopes, self._shards.add_up)
        self.windows.add(window)
        return window

    def measure_next_step(self) -> None:
        """Take QUANTITIES, too, on the coming step."""
        self._measuring = True

    def note_clip(self, total_norm: Tensor | float, max_norm: float) -> None:
        """Tell how the gradients of the coming step were clipped, so that D_w and D_b are of those before clipping.

        For loops of your own; the Trainer and accelerate's `clip_grad_norm_` are watched.

        Args:
            total_norm: what `torch.nn.utils.clip_grad_norm_` returned.
            max_norm: what it was given.
        """
        note_clip(self._optimizer, total_norm, max_norm)

    @property
    def pathways(self) -> frozenset[str]:
        """The pathways that have a trainable parameter in the optimizer."""
        return frozenset(scope.pathway for scope in self.scopes)

    @property
    def optimizer(self) -> Optimizer:
        """The innermost one, whose steps are watched."""
        return self._optimizer

    def share(self, piece: Piece) -> float:
        """The factor of sums over what this process holds of a piece, so that `add_up` counts it once."""
        return self._shards.share(piece.holder)

    def add_up(self, sums: Tensor) -> Tensor:
        """The sum of every process's `sums`; all must come to it where parameters are sharded."""
        return self._shards.add_up(sums)

    def zeros(self, *shape: int) -> Tensor:
        """Where sums are collected: on the parameters' device, in `accumulator_dtype`."""
        return self._full(0.0, *shape)

    @property
    def sharded(self) -> bool:
        """Whether a reading adds up over processes, so that all of them must come to it."""
        return self._shards.sharded

    def stop_measuring(self) -> None:
        """After a failure, no window gets another step; where parameters are sharded, each gets NaN instead.

        The other processes wait for this one's part of every reading, so the window stays as long as theirs,
        and NaN leaves the step out everywhere.
        """
        if not self._shards.sharded:
            self.windows.clear()
        self._before = {}

    def _before_step(self, closure: Any) -> None:
        self._request = self._clip = None
        if self.unavailable or not self.windows:
            return
        if closure is None:
            self._learn_clip()
        self._prepare(closure)

    def _learn_clip(self) -> Clip:
        """How this step was clipped, also once this process gave up: others wait for its part of a partial norm."""
        self._clip, self._factor = UNCLIPPED, None
        try:
            self._clip = take_clip(self._optimizer)
            self._factor = self._clip_factor(self._clip) if self._measuring else None
        except Exception as error:
            give_up(self, error)
        return self._clip

    @never_fatal
    def _prepare(self, closure: Any) -> None:
        """Have Padam sum during its step; other optimizers' updates need a copy of the parameters.

        A closure computes the gradients, and their norm, only inside the step.
        """
        if closure is None and hasattr(self._optimizer, "sum_next_step"):
            self._request = StepSums(self._pieces, self._measuring, self._factor)
            self._optimizer.sum_next_step(self._request)
        elif self._measuring:
            self._before = {holder: local(holder.detach()).clone() for holder in self._pieces_of}

    @torch.no_grad()
    def _after_step(self) -> None:
        self.found_inf = getattr(self._optimizer, "found_inf", None)
        if self.unavailable or not self.windows or getattr(self._optimizer, "step_was_skipped", False):
            return
        clip = self._clip or self._learn_clip()
        measuring, self._measuring = self._measuring, False
        row = self._row_of_step(clip, measuring)
        self._before = {}
        if row is None and self._shards.sharded:
            width = len(self.scopes)
            measured = self._full(math.nan, len(MEASURED), width) if measuring else None
            row = self._full(math.nan, width + 1), math.inf, measured
        if row is not None:
            for window in list(self.windows):
                self._add(window, *row)

    def _add(self, window: Window, gradients: Tensor, max_norm: float, measured: Tensor | None) -> None:
        """`Window.add`, also once this process gave up: a full window adds up over processes, which wait for it."""
        try:
            window.add(gradients, max_norm, measured)
        except Exception as error:
            give_up(self, error)

    @never_fatal
    def _row_of_step(self, clip: Clip, measuring: bool) -> tuple[Tensor, float, Tensor | None] | None:
        """The arguments of `Window.add`; None where nothing has a gradient."""
        request = self._request
        if request is not None and request.failure is not None:
            raise request.failure
        # Without a request the gradients are read after the step: a closure computes them inside it.
        pieces = request.summed if request is not None else [piece for piece in self._pieces if has_gradient(piece)]
        if not pieces:
            # A process that holds none of what has a gradient adds zeros: windows have as many steps everywhere.
            sums = self._full(0.0, 1 + len(MEASURED), len(self.scopes)) if self._shards.sharded else None
        else:
            answer = None if request is None else request.rows
            rows = self._rows(pieces, measuring) if answer is None else answer
            if measuring:
                shares = None if answer is None else answer[:, -2:]
                bias = implicit_bias.coefficient_sums(self._optimizer, pieces, shares)
                rows = torch.cat([rows[:, : len(SUMS) - 2], bias.to(rows)], dim=1)
                sums = self._sum_by_scope(pieces, rows)
            else:
                squares = self._squares(pieces, rows)
                if clip.max_norm == math.inf:
                    return squares, math.inf, None
                sums = squares[None, :-1]
        if sums is None:
            return None
        squares, measured = sums[0], sums[1:] if measuring else None
        return torch.cat([squares, self._clip_share(clip, squares)]), clip.max_norm, measured

    def _rows(self, pieces: Sequence[Piece], measuring: bool) -> Tensor:
        """The columns of SUMS for each piece but those of the coefficient; the first alone unless `measuring`."""
        if not measuring:
            return gradient_squares(pieces).view(-1, 1)
        return measured_sums(self._optimizer, pieces, self._before, self._factor)

    def _clip_share(self, clip: Clip, like: Tensor) -> Tensor:
        """This process's share of the square of the total norm that clipping found; 0 where nothing clips."""
        if not isinstance(clip.total_norm, Tensor) and clip.total_norm == 0:
            if self._no_clip is None or self._no_clip.device != like.device:
                self._no_clip = like.new_zeros(1)
            return self._no_clip
        return self._shards.share_of_square(_beside(clip.total_norm, like)).to(like).view(1)

    def _clip_factor(self, clip: Clip) -> Tensor | None:
        """By what the gradients were multiplied; None where nothing clips."""
        if clip.max_norm == math.inf:
            return None
        total = _beside(clip.total_norm, self._full(0.0))
        if is_partial(total):
            total = self._shards.add_up(self._shards.share_of_square(total)).sqrt()
        return clip_factor(local(total), clip.max_norm)

    def _squares(self, pieces: Sequence[Piece], rows: Tensor) -> Tensor:
        """`_sum_by_scope` of the first column, with the 0 of a step that was not clipped at its end.

        A gradient that is not finite leaves out the whole step anyway.
        """
        return self._membership.column_sums(self._all_pieces(pieces, rows).select(1, 0))

    def _all_pieces(self, pieces: Sequence[Piece], values: Tensor) -> Tensor:
        """`values` of all pieces in their order, 0 where one has none."""
        if pieces is not self._known_pieces and list(pieces) != self._pieces:
            # So that sums are over the same pieces at all steps: sending others waits for the device.
            given, zeros = dict(zip(pieces, values, strict=True)), values.new_zeros(values.shape[1])
            return torch.stack([given.get(piece, zeros) for piece in self._pieces])
        self._known_pieces = pieces
        return values

    def _sum_by_scope(self, pieces: Sequence[Piece], values: Tensor) -> Tensor:
        """Shape (len(pieces), n) to (n, len(scopes)): each value enters its pathway, component and layer."""
        return self._membership.finite_sums(self._all_pieces(pieces, values))[:, :-1]

    def _full(self, value: float, *shape: int) -> Tensor:
        device = first_param(self._optimizer).device
        return torch.full(shape, value, device=device, dtype=norms.accumulator_dtype(device))


def _scope_order(scope: Scope) -> tuple[bool, bool, bool, int]:
    """Pathways first, then components, named groups, and layers as they stand in the model."""
    parts = scope.layer is not None, scope.group is not None, scope.component is not None
    return *parts, PATHWAYS.index(scope.pathway)


def _closure(optimizer: Optimizer, closure: Any = None, *_: Any, **__: Any) -> Any:
    """What a step was given to compute the gradients with, if anything."""
    return closure


def _stepped(optimizer: Optimizer, model: nn.Module) -> Iterator[tuple[str, Mapping[str, Any], Piece | None]]:
    """What `optimizer` steps of `model`: names, groups and what this process holds; names alike on every process."""
    inner = unwrap_optimizer(optimizer)
    zero = zero_optimizer(optimizer)
    if zero is not None:
        for name, index, piece in zero_pieces(zero, model):
            yield name, inner.param_groups[index], piece
        return
    group_of = group_by_param(inner)
    for name, param in model.named_parameters():
        if param in group_of:
            yield name, group_of[param], Piece(param)


def _beside(value: Tensor | float, like: Tensor) -> Tensor:
    if isinstance(value, Tensor):  # a DTensor stays one
        return value if value.device == like.device else value.to(like.device)
    return torch.full((), value, device=like.device, dtype=like.dtype)
