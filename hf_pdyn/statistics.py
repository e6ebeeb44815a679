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
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from hf_pdyn import kernels
from hf_pdyn.grouping import PATHWAYS, Label, label_parameters, layer_of
from hf_pdyn.integrations.accelerate import take_clip_factor
from hf_pdyn.resilience import never_fatal

QUANTITIES = ("update_norm", "param_norm", "v_hat_mean", "one_norm", "N_p")
"""What a measured step adds to the gradient norms, in the order of their rows."""

_ADDED = ("update_sq", "param_sq", "v_hat_sum", "one_norm", "N_p", "numel")
"""The additive forms of QUANTITIES: what sums over tensors, and over processes that hold shards of them."""

_ATTRIBUTE = "_hf_pdyn_statistics"

_FOLD_AFTER = 1024
"""Rows a window keeps on the device before it folds them, so that an epoch of any length needs little memory."""


@dataclass(frozen=True)
class Scope:
    """What a column of statistics is about: a whole pathway, or a pathway's part of one layer."""

    pathway: str
    layer: str | None = None


@dataclass(frozen=True)
class Reading:
    """Means over the steps of a window.

    steps: optimizer steps that entered `grad_norm`. nonfinite_steps: steps left out because a gradient
    held NaN or infinity. measured_steps: steps that entered QUANTITIES.
    grad_norm: mean L2 norm of the gradient before clipping; at pathway scope these are D_w and D_b.
    grad_norm_clipped: the same of the gradients the optimizer was given.
    quantities: the means of QUANTITIES; a scope is missing where this optimizer has no such quantity.
    """

    steps: int
    nonfinite_steps: int
    measured_steps: int
    grad_norm: Mapping[Scope, float]
    grad_norm_clipped: Mapping[Scope, float]
    quantities: Mapping[str, Mapping[Scope, float]]

    @property
    def weight_norm(self) -> float | None:
        """D_w; None where no weight is trained or no step was finite."""
        return self.grad_norm.get(Scope("weight"))

    @property
    def bias_norm(self) -> float | None:
        """D_b; None where nothing bias-like is trained or no step was finite."""
        return self.grad_norm.get(Scope("bias_like"))


@dataclass
class _Totals:
    """Sums over folded steps, on the host in float64.

    Added one step after the other, so that where a window was folded (at a checkpoint, say) does not
    show in the result.
    """

    steps: int = 0
    nonfinite_steps: int = 0
    measured_steps: int = 0
    grad_norm: list[float] = field(default_factory=list)
    grad_norm_clipped: list[float] = field(default_factory=list)
    quantities: dict[str, list[float]] = field(default_factory=dict)


class Window:
    """An interval of steps. Several windows of one `StepStatistics` are independent of each other."""

    def __init__(self, statistics: StepStatistics) -> None:
        self._statistics = statistics
        self._reset()

    def _reset(self) -> None:
        self._gradients: list[Tensor] = []
        self._measured: list[Tensor] = []
        self._totals = _Totals()

    def __len__(self) -> int:
        """Steps seen since the last reading, non-finite ones included; costs no synchronisation."""
        return len(self._gradients) + self._totals.steps + self._totals.nonfinite_steps

    def read(self) -> Reading:
        """The means since the last reading; starts the next interval. Waits for the device once."""
        self._fold()
        totals, scopes = self._totals, self._statistics.scopes
        self._reset()

        def means(sums: list[float], count: int) -> dict[Scope, float]:
            pairs = zip(scopes, sums, strict=True) if count else ()
            return {scope: total / count for scope, total in pairs if math.isfinite(total)}

        return Reading(
            steps=totals.steps,
            nonfinite_steps=totals.nonfinite_steps,
            measured_steps=totals.measured_steps,
            grad_norm=means(totals.grad_norm, totals.steps),
            grad_norm_clipped=means(totals.grad_norm_clipped, totals.steps),
            quantities={name: means(sums, totals.measured_steps) for name, sums in totals.quantities.items()},
        )

    def state_dict(self) -> dict[str, Any]:
        """The interval so far as a JSON-able dict."""
        self._fold()
        return vars(self._totals).copy()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue an interval; ValueError where it was of another set of layers."""
        width = len(self._statistics.scopes)
        if state["grad_norm"] and len(state["grad_norm"]) != width:
            raise ValueError(
                f"The interval in this checkpoint has statistics of {len(state['grad_norm'])} scopes, this run has "
                f"{width}: other parameters are trained, or labelled otherwise. Resume with the same ones."
            )
        self._reset()
        self._totals = _Totals(**state)

    def close(self) -> None:
        """Stop adding steps to this window."""
        self._statistics.windows.discard(self)

    def _add(self, gradients: Tensor, measured: Tensor | None) -> None:
        self._gradients.append(gradients)
        if measured is not None:
            self._measured.append(measured)
        if len(self._gradients) >= _FOLD_AFTER:
            self._fold()

    def _fold(self) -> None:
        totals = self._totals
        if self._gradients:
            rows = torch.stack(self._gradients).cpu().double()
            squares, factors = rows[:, :-1], rows[:, -1:]
            norms = squares.sqrt()
            finite = norms.isfinite().all(dim=1)
            totals.grad_norm = _add_in_order(totals.grad_norm, (norms / factors)[finite])
            totals.grad_norm_clipped = _add_in_order(totals.grad_norm_clipped, norms[finite])
            totals.steps += int(finite.sum())
            totals.nonfinite_steps += int((~finite).sum())
        if self._measured:
            steps = torch.stack(self._measured).cpu().double()
            # A quantity that this optimizer does not have is NaN throughout; these four always exist.
            always = steps[:, [_ADDED.index(name) for name in ("update_sq", "param_sq", "one_norm", "numel")]]
            steps = steps[always.isfinite().all(dim=(1, 2))]
            update_sq, param_sq, v_hat_sum, one_norm, n_p, numel = steps.unbind(dim=1)
            measured = (update_sq.sqrt(), param_sq.sqrt(), v_hat_sum / numel, one_norm, n_p)
            for name, values in zip(QUANTITIES, measured, strict=True):
                totals.quantities[name] = _add_in_order(totals.quantities.get(name, []), values)
            totals.measured_steps += len(steps)
        self._gradients.clear()
        self._measured.clear()


def _add_in_order(sums: list[float], rows: Tensor) -> list[float]:
    """`sums` plus each of `rows` (steps, scopes), one step after the other."""
    start = torch.tensor(sums or [0.0] * rows.shape[1], dtype=rows.dtype)
    return torch.cat([start[None], rows]).cumsum(dim=0)[-1].tolist()


class StepStatistics:
    """Statistics of every step of `optimizer`, from now on.

    Args:
        optimizer: any torch optimizer (behind accelerate's wrapper: `unwrap_optimizer` it first).
        model: gives parameters their names and labels; labels in the optimizer's groups take precedence.
        labels: instead of `label_parameters(model)`.
    """

    def __init__(self, optimizer: Optimizer, model: nn.Module, *, labels: Mapping[str, Label] | None = None) -> None:
        self.windows: weakref.WeakSet[Window] = weakref.WeakSet()
        self._optimizer = optimizer
        self._measuring = False
        self._before: dict[Tensor, Tensor] = {}
        self.refresh(model, labels=labels)
        optimizer.register_step_pre_hook(lambda *_: self._before_step())
        optimizer.register_step_post_hook(lambda *_: self._after_step())

    @classmethod
    def of(cls, optimizer: Optimizer, model: nn.Module) -> StepStatistics:
        """The one instance that watches `optimizer`, so that telemetry and control measure once."""
        found: StepStatistics | None = vars(optimizer).get(_ATTRIBUTE)
        if found is None:
            found = cls(optimizer, model)
            setattr(optimizer, _ATTRIBUTE, found)
        elif not found.windows:
            found.refresh(model)
        return found

    def refresh(self, model: nn.Module, *, labels: Mapping[str, Label] | None = None) -> None:
        """Learn the optimizer's parameters anew (wrappers such as FSDP2 replace them)."""
        labels = labels or label_parameters(model)
        names = {id(param): name for name, param in model.named_parameters()}
        layers: dict[Tensor, Scope] = {}
        for group in self._optimizer.param_groups:
            for param in group["params"]:
                name = names.get(id(param))
                if name is not None and name in labels:
                    layers[param] = Scope(group.get("pathway") or labels[name].pathway, layer_of(name))
        pathways = [Scope(pathway) for pathway in PATHWAYS if any(s.pathway == pathway for s in layers.values())]
        self.scopes: tuple[Scope, ...] = (*pathways, *dict.fromkeys(layers.values()))
        column = {scope: i for i, scope in enumerate(self.scopes)}
        self._columns = {param: (column[Scope(scope.pathway)], column[scope]) for param, scope in layers.items()}
        self._index: tuple[list[Tensor], Tensor] | None = None

    def window(self) -> Window:
        """A new interval that begins with the next step."""
        window = Window(self)
        self.windows.add(window)
        return window

    def measure_next_step(self) -> None:
        """Take QUANTITIES, too, on the coming step."""
        self._measuring = True

    @property
    def pathways(self) -> frozenset[str]:
        """The pathways that have a trainable parameter in the optimizer."""
        return frozenset(scope.pathway for scope in self.scopes)

    def give_up(self) -> None:
        """Stop measuring: every window is closed."""
        self.windows.clear()
        self._end_measuring()

    @never_fatal
    def _before_step(self) -> None:
        if not (self._measuring and self.windows):
            return
        if hasattr(self._optimizer, "record_update_norms"):
            self._optimizer.record_update_norms(True)
        else:
            self._before = {param: param.detach().clone() for param in self._columns if param.grad is not None}

    @never_fatal
    @torch.no_grad()
    def _after_step(self) -> None:
        if not self.windows:
            return
        # Read after the step: a closure computes the gradients inside it.
        params = [param for param in self._columns if param.grad is not None and not param.grad.is_sparse]
        if not params:
            return
        factor = take_clip_factor()
        squares = kernels.two_norms([param.grad for param in params if param.grad is not None]).square()
        gradients = torch.cat([self._sum_by_scope(params, squares), _as_scalar(factor, squares).view(1)])
        measured = self._measure(params, factor) if self._measuring else None
        for window in list(self.windows):
            window._add(gradients, measured)
        self._end_measuring()

    def _measure(self, params: Sequence[Tensor], factor: Tensor | float) -> Tensor:
        groups = {param: group for group in self._optimizer.param_groups for param in group["params"]}
        rows = [self._sums_of(param, groups[param], factor) for param in params]
        device = rows[0][0].device
        dtype = kernels.accumulator_dtype(device)
        columns = zip(*rows, strict=True)
        return torch.stack(
            [
                self._sum_by_scope(params, torch.stack([value.to(device=device, dtype=dtype) for value in column]))
                for column in columns
            ]
        )

    def _sums_of(self, param: Tensor, group: Mapping[str, Any], factor: Tensor | float) -> tuple[Tensor, ...]:
        """The values of _ADDED for one parameter, as 0-d tensors; NaN where this optimizer has none."""
        assert param.grad is not None
        grad = param.grad / factor
        missing = torch.full((), math.nan, device=param.device)
        p, eps = _exponent(self._optimizer, group)
        v_hat = _second_moment(self._optimizer.state[param], group)
        return (
            self._update_norm(param).square(),
            kernels.two_norms([param.detach()])[0].square(),
            missing if v_hat is None else v_hat.sum(dtype=kernels.accumulator_dtype(v_hat.device)),
            kernels.perturbed_one_norm(grad, eps=eps),
            missing if p is None else kernels.penalised_norm(grad, p=p, eps=eps),
            torch.full((), float(param.numel()), device=param.device),
        )

    def _update_norm(self, param: Tensor) -> Tensor:
        recorded = getattr(self._optimizer, "update_norms", None)
        if recorded is not None:
            return recorded[param]
        return kernels.two_norms([param.detach() - self._before[param]])[0]

    def _end_measuring(self) -> None:
        if self._measuring and hasattr(self._optimizer, "record_update_norms"):
            self._optimizer.record_update_norms(False)
        self._measuring = False
        self._before = {}

    def _sum_by_scope(self, params: Sequence[Tensor], values: Tensor) -> Tensor:
        """Shape (len(params),) to (len(scopes),): each value enters its pathway and its layer's part."""
        if (
            self._index is None
            or len(self._index[0]) != len(params)
            or self._index[1].device != values.device
            or any(known is not param for known, param in zip(self._index[0], params, strict=True))
        ):
            columns = [self._columns[param] for param in params]
            self._index = (list(params), torch.tensor(columns, device=values.device))
        index = self._index[1]
        sums = values.new_zeros(len(self.scopes))
        return sums.index_add_(0, index[:, 0], values).index_add_(0, index[:, 1], values)


def _as_scalar(value: Tensor | float, like: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(device=like.device, dtype=like.dtype)
    return torch.full((), value, device=like.device, dtype=like.dtype)


def _exponent(optimizer: Optimizer, group: Mapping[str, Any]) -> tuple[float | None, float]:
    """(p, eps) that `optimizer` applies to `group`: its own, or those of the Padam it equals."""
    if "p" in group:
        return group["p"], group["eps"]
    if isinstance(optimizer, Adam):  # AdamW is one; their eps stands outside the root
        return 0.5, group["eps"] ** 2
    return (0.0, 0.0) if isinstance(optimizer, SGD) else (None, 0.0)


def _second_moment(state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor | None:
    """v_hat from an Adam-like optimizer's state; None for others."""
    v = state.get("max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq")
    if v is None or "betas" not in group or "step" not in state:
        return None
    # In float32, 1 - beta2^t has lost five digits when t is small.
    step = state["step"].to(kernels.accumulator_dtype(state["step"].device))
    v_hat = v / (1 - group["betas"][1] ** step)
    return torch.view_as_real(v_hat) if v_hat.is_complex() else v_hat
