"""`Padam`: the p-update of *Information allocation dynamics* (IAD Eq. 18) as a `torch.optim.Optimizer`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim.optimizer import Optimizer, ParamsT

from hf_pdyn.optim import fused as fused_kernels
from hf_pdyn.optim import weight_correction as corrections
from hf_pdyn.optim.dispatch import Match, StepDispatch
from hf_pdyn.optim.hyperparameters import (
    BiasCorrection,
    Nonfinite,
    StateDtype,
    UpdateScale,
    check_hyperparameters,
    check_nonfinite,
    check_one_update_scale,
    check_path,
    check_same_groups,
    check_state_dtype,
    check_written,
    refuse_what_needs_the_whole,
    say_what_is_overruled,
    take_numbers,
    warn_of_small_eps,
)
from hf_pdyn.optim.partitions import watch_partitions
from hf_pdyn.optim.state_format import convert_state, storage_of
from hf_pdyn.optim.step_counts import StepCounts
from hf_pdyn.optim.step_plan import StepPlan, can_be_planned
from hf_pdyn.optim.step_work import StepSums, Update, as_scalar, group_lr
from hf_pdyn.optim.update_list import UpdateList, local_reals
from hf_pdyn.tensors import norms
from hf_pdyn.tensors.sharding import Piece, Shards, first_param, local_like


class Padam(Optimizer):
    r"""theta <- theta - lr * m_hat / (v_hat + eps)^p, from momentum (p=0) over Adam (p=1/2) and beyond.

    Args:
        params: tensors, `(name, tensor)` pairs or groups of either, as for every torch optimizer.
        lr: learning rate, a float or a one-element tensor.
        betas: decay rates of the first and second moment, each in [0, 1).
        eps: added to v_hat *inside* the power, so in units of a squared gradient. Adam's epsilon E
            corresponds to E**2; the default is that of Adam's 1e-8. A positive one below float32's smallest normal
            number, 1.2e-38, is taken for that number.
        p: the exponent, any finite float. Read from `param_groups` at every step, so a group may have
            its own and a callback may move it.
        weight_decay: decoupled (theta <- (1 - lr * weight_decay) theta) unless
            `decoupled_weight_decay=False`, which adds `weight_decay * theta` to the gradient. The
            default is AdamW's.
        amsgrad: use the running maximum of v.
        maximize: ascend instead of descend.
        update_scale: `"raw"` is Eq. 18 untouched. `"adam"` multiplies every update by one scalar
            c_t = RMS(update at p=1/2) / RMS(update), both over *all* parameters: the learning rate
            keeps the meaning it has for AdamW at any p, and p moves only the allocation. One scalar
            for all groups, since one each would undo the allocation. `last_scale` is c_t of the last step, a 0-d
            tensor; None where nothing was matched, and of no meaning after a step that was skipped.
        bias_correction: `"eq18"` corrects v inside the power. `"padam"` is the form of the published
            Padam implementations (see `equation.update_directions`), and is never fused.
        state_dtype: what moments are stored in: `"fp32"`; `"16bit"`, 4 bytes a parameter instead of 8; `"8_16bit"`, 3
            bytes. They are rounded stochastically, by a hash that makes a run repeat itself bit for bit, also
            resumed or sharded otherwise (`state_format`). For parameters of float32, bf16 and fp16.
        weight_correction: store what rounding leaves of every bf16 and fp16 parameter beside it, 2 bytes each, so that
            updates too small to move it add up: a bf16 parameter is then stepped as the float32 one that both make
            (`weight_correction`). ValueError where no parameter is of 16 bits.
        nonfinite: what a step does in which a gradient holds NaN or infinity. `"apply"` is what torch's
            optimizers do: the tensors concerned are lost. `"skip"` leaves parameters, moments and step
            counts as they are, without weight decay; `step_was_skipped` tells whether the last step was.
            It reads one number on the host at every step, as a gradient scaler does, and where parameters
            are DTensors all processes agree by one all-reduce. With `capturable=True` nothing is read: the device
            decides, `found_inf` is a 0-d tensor that is not 0 where the last step was skipped, `step_was_skipped`
            stays False, statistics count the step as non-finite, and callbacks that decide or read every so many
            steps count it as one. An attribute, in no group and no
            checkpoint: a resumed run may choose anew.
        foreach, fused: how a step is computed; None, the default, chooses. `fused` is one pass over memory by a
            compiled kernel, on CPUs (Linux, float32 and bf16) and CUDA devices with Triton; True insists on it: a
            ValueError here, or a RuntimeError at the first step, says why it cannot be had. `foreach` takes many
            tensors in one operation; False takes one after the other. Neither is in a group or a checkpoint.
        capturable: keep step counts on the device, so that a step can be captured in a CUDA graph. What changes
            between replays must be a tensor, as for every optimizer: of a group, the learning rate can be one. Also
            in no group and no checkpoint.

    Moments are float32 for bf16 and fp16 parameters unless `state_dtype` says otherwise: beta2=0.999 cannot move a
    bf16 second moment that is rounded to nearest.

    The largest gradients are those of `torch.optim.AdamW` in float32: from abs(g) = 1.8e19 / sqrt(1 - beta2) on, 5.8e20
    at the default, v overflows, and for p > 0 such an element no longer moves. From 1.8e19 on its square, hence every
    norm of a gradient, is infinite: telemetry counts the step as non-finite.

    At p=1/2 the update is AdamW's up to where eps stands: sqrt(v_hat + eps) against sqrt(v_hat) + E,
    equal to float32 rounding wherever sqrt(v_hat) >> E = sqrt(eps).

    Example:
        >>> optimizer = Padam(build_param_groups(model, weight_decay=0.1), lr=3e-4, p=0.4, update_scale="adam")
        >>> for batch in dataloader:
        ...     model(**batch).loss.backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> optimizer.param_groups[0]["p"] = 0.5  # a float in every group; the next step reads it
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-16,
        p: float = 0.5,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        decoupled_weight_decay: bool = True,
        update_scale: UpdateScale = "raw",
        bias_correction: BiasCorrection = "eq18",
        state_dtype: StateDtype = "fp32",
        weight_correction: bool = False,
        nonfinite: Nonfinite = "apply",
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None:
        check_path(foreach=foreach, fused=fused)
        self.foreach, self.fused, self.capturable = foreach, fused, capturable
        self.nonfinite = nonfinite
        self.step_was_skipped = False
        self.found_inf: Tensor | None = None
        self.last_scale: Tensor | None = None
        self._request: StepSums | None = None
        self._dispatch: StepDispatch | None = None
        self._updates = UpdateList()
        self._counts = StepCounts()
        self._plan: StepPlan | None = None
        defaults: dict[str, Any] = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "p": p,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "decoupled_weight_decay": decoupled_weight_decay,
            "update_scale": update_scale,
            "bias_correction": bias_correction,
            "state_dtype": state_dtype,
            "weight_correction": weight_correction,
        }
        super().__init__(params, defaults)
        corrections.check_reaches_some(self.param_groups)
        watch_partitions()

    @property
    def nonfinite(self) -> Nonfinite:
        """What a step does in which a gradient holds NaN or infinity; ValueError for a value that it cannot have."""
        return self._nonfinite

    @nonfinite.setter
    def nonfinite(self, value: Nonfinite) -> None:
        check_nonfinite(value)
        self._nonfinite: Nonfinite = value

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; missing hyper-parameters take the defaults, all are checked (ValueError)."""
        complete = {**self.defaults, **param_group}
        check_hyperparameters(complete)
        check_one_update_scale([self.defaults, complete])
        warn_of_small_eps(complete["eps"])
        super().add_param_group(param_group)
        try:
            check_state_dtype(self.param_groups[-1])
            self._check_path_of(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise
        self._dispatch = self._plan = None

    def _check_path_of(self, group: dict[str, Any]) -> None:
        params = group["params"]
        reason = fused_kernels.why_not(group, map(local_reals, params)) if self.fused else None
        if reason is not None:
            raise ValueError(
                f"There is no fused step for these parameters: {reason}. Leave fused at None, or set it to False."
            )
        for param in params if self.capturable else ():
            if param.device.type != "cuda":
                raise ValueError(
                    f"capturable=True is for CUDA graphs, got a parameter on {param.device}. Move the model first, or "
                    "leave capturable at False."
                )

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: getattr(self, name) for name in ("_nonfinite", "foreach", "fused", "capturable")}
        return {**super().__getstate__(), **kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_nonfinite", "apply")
        self.__dict__.setdefault("foreach", None)
        self.__dict__.setdefault("fused", None)
        self.__dict__.setdefault("capturable", False)
        self.step_was_skipped = False
        self.found_inf = self.last_scale = None
        self._request = None
        self._dispatch = None
        self._updates = UpdateList()
        self._counts = StepCounts()
        self._plan = None

    # torch.compile leaves the step out: Dynamo cannot trace a kernel that is given addresses, and would compile anew
    # for every step count. Not torch.compiler.disable, which imports all of Dynamo (torch 2.13).
    @_disable_dynamo
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient, or of none (`nonfinite`); returns the closure's loss.

        Raises RuntimeError for a sparse gradient, and with `fused=True` where a fused step cannot be compiled;
        ValueError where a callback has written a p or a weight decay that is no finite number.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        take_numbers(self.param_groups)
        check_written(self.param_groups)

        request, self._request = self._request, None
        found_inf = self._any_nonfinite_gradient() if self.nonfinite == "skip" else None
        self.found_inf = found_inf if self.capturable else None
        self.step_was_skipped = found_inf is not None and not self.capturable and bool(found_inf > 0)
        if self.step_was_skipped:
            return loss
        if self._dispatch is None:
            params = (param for group in self.param_groups for param in group["params"])
            self._dispatch = StepDispatch(params, foreach=self.foreach, fused=self.fused)
        # At p=1/2 everywhere there is nothing to match.
        matched = self.param_groups[0]["update_scale"] == "adam" and any(g["p"] != 0.5 for g in self.param_groups)
        self.last_scale = None
        self._step(self._dispatch, request, self._matching_scale if matched else None)
        return loss

    def _step(self, dispatch: StepDispatch, request: StepSums | None, match: Match | None) -> None:
        """Everything that has a gradient; as at the step before where nothing else has changed."""
        pieces = None if request is None else request.pieces
        plan, self._plan = None if self.capturable else self._plan, None
        grads = plan.gradients(self.param_groups, self.state, pieces) if plan is not None else None
        times: list[Any] | None = None
        if plan is not None and grads is not None:
            times = self._counts.advance(plan.states)
            given = plan.of_updates(grads, times)
            if plan.counts_on(times) and dispatch.repeat(plan.last, *given, request, match):
                self._plan = plan
                return
        try:
            updates = self._updates_of(pieces, times)
            last = dispatch.step(updates, request, match, self.found_inf)
            if last is not None and not self.capturable and can_be_planned(updates):
                self._plan = StepPlan(self.param_groups, self.state, updates, pieces, last)
        finally:
            self._updates.release()

    def refuse_parts(self, because: str) -> None:
        """ValueError if a setting needs the whole gradient; `because` says why this optimizer does not have that."""
        refuse_what_needs_the_whole({**self.param_groups[0], "nonfinite": self.nonfinite}, because)

    def sum_next_step(self, request: StepSums) -> None:
        """Have the coming step answer `request`, the last one given; a step that is skipped leaves it as it is."""
        self._request = request

    def state_dict(self) -> dict[str, Any]:
        """As every torch optimizer's; p and weight decay are floats in it, whatever a callback has written."""
        take_numbers(self.param_groups)
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore states and groups; the checkpoint's hyper-parameters win, as everywhere in torch, with a warning.

        A group that lacks a hyper-parameter keeps this optimizer's value.

        Raises:
            ValueError: the checkpoint's groups are not this optimizer's, or hold a value that the constructor would
                refuse. Nothing is loaded then.
        """
        check_same_groups(state_dict["param_groups"], self.param_groups)
        groups = [
            # torch adds defaults of its own. How states are stored is up to this run.
            {**{name: own[name] for name in self.defaults if name in own}, **saved, **_of_this_run(own)}
            for own, saved in zip(self.param_groups, state_dict["param_groups"], strict=True)
        ]
        for group in groups:
            check_hyperparameters(group)
        check_one_update_scale(groups)
        say_what_is_overruled(groups, self.param_groups)
        super().load_state_dict({**state_dict, "param_groups": groups})
        saved = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        params = ((group, param) for group in self.param_groups for param in group["params"])
        converted: set[str] = set()
        corrected: set[str] = set()
        for number, (key, (group, param)) in enumerate(zip(saved, params, strict=True)):
            if key in state_dict["state"]:
                state, state_dtype = self.state[param], group["state_dtype"]
                _restore_precision(state, state_dict["state"][key], param, self._step_device(param))
                before = convert_state(state, state_dtype, number)
                converted |= {f"{before} to {state_dtype}"} if before != state_dtype else set()
                done = corrections.convert_state(state, param, wanted=corrections.wanted(group, param))
                corrected |= {done} if done else set()
        if converted:
            warnings.warn(
                f"This checkpoint's moments are converted from {', '.join(sorted(converted))}, in which this run "
                "stores them. With the checkpoint's state_dtype they would be loaded as they are.",
                stacklevel=2,
            )
        if corrected:
            warnings.warn(f"Corrections of parameters {' and '.join(sorted(corrected))}.", stacklevel=2)

    def _any_nonfinite_gradient(self) -> Tensor:
        """Not 0 where any process holds one; sharded, all call this, also one that has no gradient."""
        params = [param for group in self.param_groups for param in group["params"]]
        grads = [
            local_reals(local_like(param.grad, param))
            for param in params
            if param.grad is not None and not param.grad.is_sparse
        ]
        return Shards(params).add_up(norms.holds_nonfinite(grads, params[0].device))

    def _updates_of(self, pieces: Sequence[Piece] | None, times: Sequence[Any] | None) -> list[Update]:
        """Everything that has a gradient, its state made and its step counted; in the order of `pieces`.

        times: the step counts, if they have been counted.
        """
        all_params = ((group, param) for group in self.param_groups for param in group["params"])
        numbered = [
            (number, (group, param, grad))
            for number, (group, param) in enumerate(all_params)
            if (grad := param.grad) is not None
        ]
        numbers, stepped = [number for number, _ in numbered], [found for _, found in numbered]
        if any(grad.is_sparse for _, _, grad in stepped):
            raise RuntimeError(
                "Padam does not support sparse gradients: its moments are dense. Build the embedding with "
                "sparse=False, or keep it out of this optimizer and give it torch.optim.SparseAdam."
            )
        states = [self._state_of(group, param) for group, param, _ in stepped]
        if times is None and not self.capturable:
            times = self._counts.advance(states)
        elif times is None:
            times = [state["step"] for state in states]
            if times and self.found_inf is not None:
                taken = (self.found_inf == 0).float()
                # One tensor for all would be read on the host, which no capture allows (torch 2.13).
                torch._foreach_add_(times, [taken.to(time.device) for time in times])
            elif times:
                torch._foreach_add_(times, 1)
        return self._updates.of_step(stepped, numbers, states, times, pieces)

    def _state_of(self, group: dict[str, Any], param: Tensor) -> dict[str, Any]:
        state = self.state[param]
        if not state:
            of_m, of_v = storage_of(group["state_dtype"], param.dtype)
            state["step"] = torch.zeros((), dtype=torch.float32, device=self._step_device(param))
            state["exp_avg"] = torch.zeros_like(param, dtype=of_m, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(state["exp_avg"], dtype=of_v)
        if group["amsgrad"] and "max_exp_avg_sq" not in state:
            state["max_exp_avg_sq"] = torch.zeros_like(state["exp_avg_sq"])
        if group["weight_correction"] and "weight_correction" not in state:
            if corrections.wanted(group, param):
                state["weight_correction"] = corrections.zeros(param)
            else:
                corrections.warn_of_none(self.param_groups)
        return state

    def _step_device(self, param: Tensor) -> torch.device:
        """On the CPU, as in torch.optim: reading it for the bias correction must not wait for the device."""
        return param.device if self.capturable else torch.device("cpu")

    def _matching_scale(self, updates: Sequence[Update], squares: Tensor) -> Tensor:
        """c_t of `update_scale="adam"` as a 0-d tensor, the same in all processes.

        squares: of each update's direction and of its direction at p=1/2, shape (len(updates), 2). They are weighted
        by their group's learning rate, so that with `lr_mult` too it is the whole update whose RMS is matched. A
        tensor that holds NaN or infinity is left out, or it would spread from one tensor to all.
        """
        shards = Shards(param for group in self.param_groups for param in group["params"])
        device = first_param(self).device
        # A process that holds none of what has a gradient must still take part in the sum.
        weighted = squares.to(device=device, dtype=norms.accumulator_dtype(device)).view(-1, 2)
        weights = self._weights(updates, shards, like=weighted)
        if weights is not None:
            # Python's numbers are arguments of the kernel; a tensor of them would be sent to the device first.
            weighted = torch.stack(torch._foreach_mul(list(weighted), weights))
        finite = weighted.sum(dim=1, keepdim=True) < math.inf
        raw, adam = shards.add_up(torch.where(finite, weighted, 0).sum(dim=0))
        self.last_scale = torch.where(raw > 0, (adam / raw).sqrt(), 1.0)
        return self.last_scale

    def _weights(self, updates: Sequence[Update], shards: Shards, like: Tensor) -> list[Any] | None:
        """By what the squares of each update count; None where all count alike."""
        rates = [group_lr(group) for group in self.param_groups]
        alike = not any(isinstance(rate, Tensor) for rate in rates) and len(set(rates)) == 1
        if not updates or (alike and not shards.sharded):
            return None
        relative = self._relative_lrs([update.group for update in updates], like)
        return [rate * rate * shards.share(update.holder) for rate, update in zip(relative, updates, strict=True)]

    def _relative_lrs(self, groups: list[Mapping[str, Any]], like: Tensor) -> list[Any]:
        """Each group's learning rate over the largest of *all* groups, which is the same in all processes."""
        rates = [group_lr(group) for group in self.param_groups]
        if not any(isinstance(rate, Tensor) for rate in rates):
            largest = max(rates)
            relative = {
                id(group): rate / largest if largest else 1.0
                for group, rate in zip(self.param_groups, rates, strict=True)
            }
            return [relative[id(group)] for group in groups]
        largest = torch.stack([as_scalar(rate, like.device, like.dtype) for rate in rates]).max()
        largest = largest.clamp(min=torch.finfo(like.dtype).tiny)
        return [as_scalar(group_lr(group), like.device, like.dtype) / largest for group in groups]


def _of_this_run(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: group[name] for name in ("state_dtype", "weight_correction")}


def _restore_precision(state: dict[str, Any], saved: dict[str, Any], param: Tensor, step_device: torch.device) -> None:
    """Undo what torch's load_state_dict (2.13) does to us.

    It casts every state to the parameter's dtype, which rounds float32 moments of a bf16 parameter and
    spoils codes; and it leaves `step` on whatever device the checkpoint was mapped to, where reading it
    would synchronise at every step.
    """
    for name, value in saved.items():
        if name == "step":
            step = torch.as_tensor(value)  # torch allows numbers
            state[name] = step.detach().to(device=step_device, dtype=torch.float32, copy=True)
        elif isinstance(value, Tensor) and not value.is_complex() and value.dtype != state[name].dtype:
            state[name] = value.to(device=param.device, copy=True)
