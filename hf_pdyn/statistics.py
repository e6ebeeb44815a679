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
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from hf_pdyn import kernels
from hf_pdyn.grouping import PATHWAYS, Label, label_parameters, layer_of
from hf_pdyn.integrations.accelerate import take_clip_factor
from hf_pdyn.resilience import never_fatal
from hf_pdyn.sharding import Shards, local, local_like, shards_invisibly
from hf_pdyn.windows import Scope, Window

_ATTRIBUTE = "_hf_pdyn_statistics"


class StepStatistics:
    """Statistics of every step of `optimizer`, from now on.

    Args:
        optimizer: any torch optimizer (behind accelerate's wrapper: `unwrap_optimizer` it first).
        model: gives parameters their names and labels; labels in the optimizer's groups take precedence.
        labels: instead of `label_parameters(model)`.

    `unavailable` is None, or the reason why nothing can be measured here.
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
        self.unavailable = _why_unavailable(self._optimizer, model)
        if self.unavailable:
            labels = {}
        for group in self._optimizer.param_groups:
            for param in group["params"]:
                name = names.get(id(param))
                if name is not None and name in labels:
                    layers[param] = Scope(group.get("pathway") or labels[name].pathway, layer_of(name))
        pathways = [Scope(pathway) for pathway in PATHWAYS if any(s.pathway == pathway for s in layers.values())]
        self.scopes: tuple[Scope, ...] = (*pathways, *dict.fromkeys(layers.values()))
        column = {scope: i for i, scope in enumerate(self.scopes)}
        self._columns = {param: (column[Scope(scope.pathway)], column[scope]) for param, scope in layers.items()}
        self._index: tuple[list[Tensor], Tensor, Tensor | float] | None = None
        self._shards = Shards(self._columns)

    def window(self) -> Window:
        """A new interval that begins with the next step, and ends when nobody refers to the window any more."""
        take_clip_factor()  # of a step before this window
        window = Window(self.scopes, self._shards.add_up)
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
        """Stop measuring: no window gets another step.

        RuntimeError where parameters are sharded: the other processes would wait for this one's sums
        for ever.
        """
        if self._shards.sharded:
            raise RuntimeError("hf_pdyn failed to measure sharded gradients on this process (its cause is above).")
        self.windows.clear()
        self._before = {}

    @never_fatal
    def _before_step(self) -> None:
        if not (self._measuring and self.windows):
            return
        if hasattr(self._optimizer, "record_next_update_norms"):
            self._optimizer.record_next_update_norms()
        else:
            # All of them: with a closure the gradients come only inside the step.
            self._before = {param: local(param.detach()).clone() for param in self._columns}

    @never_fatal
    @torch.no_grad()
    def _after_step(self) -> None:
        factor = take_clip_factor()
        if not self.windows:
            return
        # Read after the step: a closure computes the gradients inside it.
        params = [param for param in self._columns if param.grad is not None and not param.grad.is_sparse]
        if not params:
            return
        squares = kernels.two_norms([_local_grad(param) for param in params]).square()
        gradients = torch.cat([self._sum_by_scope(params, squares), _as_scalar(factor, squares).view(1)])
        measured = self._measure(params, factor) if self._measuring else None
        for window in list(self.windows):
            window.add(gradients, measured)
        self._measuring = False
        self._before = {}

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
        """The values of SUMS for one parameter, as 0-d tensors; NaN where this optimizer has none."""
        grad = _local_grad(param)
        if not (isinstance(factor, float) and factor == 1):
            grad = grad / (factor.to(grad.device) if isinstance(factor, Tensor) else factor)
        missing = torch.full((), math.nan, device=param.device)
        p, eps = _exponent(self._optimizer, group)
        v_hat = _second_moment(self._optimizer.state[param], group)
        return (
            self._update_norm(param).square(),
            kernels.two_norms([local(param.detach())])[0].square(),
            missing if v_hat is None else v_hat.sum(dtype=kernels.accumulator_dtype(v_hat.device)),
            kernels.perturbed_one_norm(grad, eps=eps),
            missing if p is None else kernels.penalised_norm(grad, p=p, eps=eps),
            torch.full((), float(grad.numel()), device=param.device),
        )

    def _update_norm(self, param: Tensor) -> Tensor:
        recorded = getattr(self._optimizer, "update_norms", None)
        if recorded is not None:
            return recorded[param]
        return kernels.two_norms([local(param.detach()) - self._before[param]])[0]

    def _sum_by_scope(self, params: Sequence[Tensor], values: Tensor) -> Tensor:
        """Shape (len(params),) to (len(scopes),): each value enters its pathway and its layer's part."""
        if (
            self._index is None
            or len(self._index[0]) != len(params)
            or self._index[1].device != values.device
            or any(known is not param for known, param in zip(self._index[0], params, strict=True))
        ):
            columns = [self._columns[param] for param in params]
            index = torch.tensor(columns, device=values.device)
            self._index = (list(params), index, self._shards.shares(params, like=values))
        _, index, shares = self._index
        values = values * shares
        sums = values.new_zeros(len(self.scopes))
        return sums.index_add_(0, index[:, 0], values).index_add_(0, index[:, 1], values)


def _why_unavailable(optimizer: Optimizer, model: nn.Module) -> str | None:
    if shards_invisibly(model):
        return "FSDP1 shards parameters without saying which; use FSDP2 (fsdp_version: 2)"
    owned = {id(param) for param in model.parameters()}
    if not any(id(param) in owned for group in optimizer.param_groups for param in group["params"]):
        return "the optimizer steps tensors that are not the model's (DeepSpeed ZeRO partitions them); use DDP or FSDP2"
    return None


def _local_grad(param: Tensor) -> Tensor:
    assert param.grad is not None
    return local_like(param.grad, param)


def _as_scalar(value: Tensor | float, like: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(device=like.device, dtype=like.dtype)
    return torch.full((), value, device=like.device, dtype=like.dtype)


def _exponent(optimizer: Optimizer, group: Mapping[str, Any]) -> tuple[float | None, float]:
    """(p, eps) that `optimizer` applies to `group`: its own, or those of the Padam it equals."""
    if "p" in group:
        return group["p"], group["eps"]
    if isinstance(optimizer, (Adam, AdamW)):  # their eps stands outside the root
        return 0.5, group["eps"] ** 2
    return (0.0, 0.0) if isinstance(optimizer, SGD) else (None, 0.0)


def _second_moment(state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor | None:
    """v_hat from an Adam-like optimizer's state; None for others."""
    v = state.get("max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq")
    if v is None or "betas" not in group or "step" not in state:
        return None
    # In float32, 1 - beta2^t has lost five digits when t is small.
    step = torch.as_tensor(state["step"])
    step = step.to(kernels.accumulator_dtype(step.device))
    v_hat = local(v) / (1 - group["betas"][1] ** step)
    return torch.view_as_real(v_hat) if v_hat.is_complex() else v_hat
