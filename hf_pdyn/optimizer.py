"""`Padam`: the p-update of *Information allocation dynamics* (IAD Eq. 18) as a `torch.optim.Optimizer`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from hf_pdyn import kernels
from hf_pdyn.sharding import Shards, first_param, local, local_like
from hf_pdyn.suggest import check_choice

UpdateScale = Literal["raw", "adam"]
BiasCorrection = Literal["eq18", "padam"]
Nonfinite = Literal["apply", "skip"]

_SETTINGS = ("p", "betas", "eps", "weight_decay", "amsgrad", "maximize", "decoupled_weight_decay", "update_scale")

UpdateObserver = Callable[[Tensor, Tensor], None]

_DIRECTIONS: dict[str, Callable[..., Tensor]] = {
    "eq18": kernels.update_direction,
    "padam": kernels.published_padam_direction,
}


class Padam(Optimizer):
    r"""theta <- theta - lr * m_hat / (v_hat + eps)^p, from momentum (p=0) over Adam (p=1/2) and beyond.

    Args:
        params: tensors, `(name, tensor)` pairs or groups of either, as for every torch optimizer.
        lr: learning rate, a float or a one-element tensor.
        betas: decay rates of the first and second moment, each in [0, 1).
        eps: added to v_hat *inside* the power, so in units of a squared gradient. Adam's epsilon E
            corresponds to E**2; the default is that of Adam's 1e-8.
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
            for all groups, since one each would undo the allocation.
        bias_correction: `"eq18"` corrects v inside the power. `"padam"` is the form of the published
            Padam implementations (see `kernels.published_padam_direction`).
        nonfinite: what a step does in which a gradient holds NaN or infinity. `"apply"` is what torch's
            optimizers do: the tensors concerned are lost. `"skip"` leaves parameters, moments and step
            counts as they are, without weight decay; `step_was_skipped` tells whether the last step was.
            It reads one number on the host at every step, as a gradient scaler does, and where parameters
            are DTensors all processes agree by one all-reduce. An attribute, in no group and no
            checkpoint: a resumed run may choose anew.

    Moments are float32 for bf16 and fp16 parameters: beta2=0.999 cannot move a bf16 second moment.

    At p=1/2 the update is AdamW's up to where eps stands: sqrt(v_hat + eps) against sqrt(v_hat) + E,
    equal to float32 rounding wherever sqrt(v_hat) >> E = sqrt(eps).
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
        nonfinite: Nonfinite = "apply",
    ) -> None:
        check_choice("update_scale", update_scale, get_args(UpdateScale))
        check_choice("bias_correction", bias_correction, get_args(BiasCorrection))
        check_choice("nonfinite", nonfinite, get_args(Nonfinite))
        self.nonfinite: Nonfinite = nonfinite
        self.step_was_skipped = False
        self._observers: list[UpdateObserver] = []
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
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; missing hyper-parameters take the defaults, all are checked (ValueError)."""
        _check_hyperparameters({**self.defaults, **param_group})
        if param_group.get("update_scale", self.defaults["update_scale"]) != self.defaults["update_scale"]:
            raise ValueError(
                f"update_scale is one scalar for all groups (one each would undo the allocation), got "
                f"{param_group['update_scale']!r} for a group of an optimizer with "
                f"{self.defaults['update_scale']!r}. Set it on the optimizer."
            )
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "nonfinite": self.nonfinite}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("nonfinite", "apply")
        self.__dict__.setdefault("step_was_skipped", False)
        self.__dict__.setdefault("_observers", [])

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient, or of none (`nonfinite`); returns the closure's loss.

        Raises RuntimeError for a sparse gradient.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        self.step_was_skipped = self.nonfinite == "skip" and self._any_nonfinite_gradient()
        if self.step_was_skipped:
            return loss
        for group, param in self._with_gradient():
            self._update_moments(group, param)
        scale = self._matching_scale() if self.param_groups[0]["update_scale"] == "adam" else None
        observers, self._observers = self._observers, []
        for group, param in self._with_gradient():
            self._apply(group, param, scale, observers)
        return loss

    def observe_next_updates(self, observer: UpdateObserver) -> None:
        """Have the coming step call `observer(param, update)` for every parameter it updates.

        `update` is what will be subtracted, without weight decay, of what this process holds of the
        parameter. It is valid during the call only. A skipped step passes the request on to the next.
        """
        if observer not in self._observers:
            self._observers.append(observer)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore states and groups; the checkpoint's hyper-parameters win, as everywhere in torch, with a warning.

        Raises ValueError where the checkpoint's groups are not this optimizer's, and says what differs.
        """
        _check_groups(state_dict["param_groups"], self.param_groups)
        _say_what_is_overruled(state_dict["param_groups"], self.param_groups)
        super().load_state_dict(state_dict)
        saved = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        for key, param in zip(saved, params, strict=True):
            if key in state_dict["state"]:
                _restore_precision(self.state[param], state_dict["state"][key], param)

    def _with_gradient(self) -> Iterator[tuple[dict[str, Any], Tensor]]:
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    yield group, param

    def _any_nonfinite_gradient(self) -> bool:
        """Of any process, where parameters are sharded: all call this, also one that has no gradient."""
        params = [param for group in self.param_groups for param in group["params"]]
        grads = [
            _local_reals(local_like(param.grad, param))
            for param in params
            if param.grad is not None and not param.grad.is_sparse
        ]
        return bool(Shards(params).add_up(kernels.holds_nonfinite(grads, params[0].device)) > 0)

    def _update_moments(self, group: dict[str, Any], param: Tensor) -> None:
        grad = param.grad
        assert grad is not None
        if grad.is_sparse:
            raise RuntimeError(
                "Padam does not support sparse gradients: its moments are dense. Build the embedding with "
                "sparse=False, or keep it out of this optimizer and give it torch.optim.SparseAdam."
            )
        state = self.state[param]
        if not state:
            dtype = torch.promote_types(param.dtype, torch.float32)
            # On the CPU, as in torch.optim: reading it for the bias correction must not wait for the device.
            state["step"] = torch.tensor(0.0, device="cpu")  # whatever the default device
            state["exp_avg"] = torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(state["exp_avg"])
        if group["amsgrad"] and "max_exp_avg_sq" not in state:
            state["max_exp_avg_sq"] = torch.zeros_like(state["exp_avg"])
        state["step"] += 1

        exp_avg, exp_avg_sq = _local_reals(state["exp_avg"]), _local_reals(state["exp_avg_sq"])
        grad = _local_reals(local_like(grad, param))
        if group["maximize"]:
            grad = -grad
        if group["weight_decay"] != 0 and not group["decoupled_weight_decay"]:
            grad = grad.to(exp_avg.dtype).add(_local_reals(param), alpha=group["weight_decay"])
        beta1, beta2 = group["betas"]
        kernels.update_moments(exp_avg, exp_avg_sq, grad, beta1=beta1, beta2=beta2)
        if group["amsgrad"]:
            maximum = _local_reals(state["max_exp_avg_sq"])
            torch.maximum(maximum, exp_avg_sq, out=maximum)

    def _apply(
        self, group: dict[str, Any], param: Tensor, scale: Tensor | None, observers: list[UpdateObserver]
    ) -> None:
        lr, weight_decay = group["lr"], group["weight_decay"]
        if isinstance(lr, Tensor):
            lr = lr.view(())
        update = self._direction(group, param, group["p"])
        update.mul_(lr if scale is None else scale.to(update) * lr)
        for observer in observers:
            observer(param, update)
        theta = _local_reals(param)
        if weight_decay != 0 and group["decoupled_weight_decay"]:
            update.add_(theta.to(update.dtype) * (lr * weight_decay))
        # One rounding for bf16 parameters: update and decay together, in float32.
        theta.sub_(update)

    def _direction(self, group: dict[str, Any], param: Tensor, p: float) -> Tensor:
        state = self.state[param]
        beta1, beta2 = group["betas"]
        return _DIRECTIONS[group["bias_correction"]](
            _local_reals(state["exp_avg"]),
            _local_reals(state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]),
            step=float(state["step"]),
            beta1=beta1,
            beta2=beta2,
            p=p,
            eps=group["eps"],
        )

    def _matching_scale(self) -> Tensor | None:
        """c_t of `update_scale="adam"` as a 0-d tensor, the same in all processes; None without any gradient.

        Directions are weighted by their group's learning rate, so that with `lr_mult` too it is the
        whole update whose RMS is matched. A tensor that holds NaN or infinity is left out, or it would
        spread from one tensor to all.
        """
        shards = Shards(param for group in self.param_groups for param in group["params"])
        pairs = list(self._with_gradient())
        # A process that holds none of what has a gradient must still take part in the sum.
        if not pairs and not shards.sharded:
            return None
        device = first_param(self.param_groups).device
        dtype = kernels.accumulator_dtype(device)
        sums = torch.zeros(2, device=device, dtype=dtype)
        if pairs:
            norms = [self._norms_to_match(group, param).to(sums) for group, param in pairs]
            rates = self._relative_lrs([group for group, _ in pairs], like=sums)
            # Python's numbers are arguments of the kernel; a tensor of them would be sent to the device first.
            weights = [rate * shards.share(param) ** 0.5 for rate, (_, param) in zip(rates, pairs, strict=True)]
            weighted = torch.stack(torch._foreach_mul(norms, weights), dim=1)
            sums = torch.where(weighted.isfinite().all(dim=0), weighted, 0).square().sum(dim=1)
        raw, adam = shards.add_up(sums)
        return torch.where(raw > 0, (adam / raw).sqrt(), 1.0)

    def _norms_to_match(self, group: dict[str, Any], param: Tensor) -> Tensor:
        """The L2 norms of the direction and of the one at p=1/2, shape (2,)."""
        raw = kernels.two_norms([self._direction(group, param, group["p"])])
        return torch.cat([raw, raw if group["p"] == 0.5 else kernels.two_norms([self._direction(group, param, 0.5)])])

    def _relative_lrs(self, groups: list[dict[str, Any]], like: Tensor) -> list[Any]:
        """Each group's learning rate over the largest of *all* groups, which is the same in all processes."""
        rates = [_on_host(group["lr"]) for group in self.param_groups]
        if not any(isinstance(rate, Tensor) for rate in rates):
            largest = max(rates) or 1.0
            return [_on_host(group["lr"]) / largest for group in groups]
        largest = torch.stack([_as_scalar(rate, like) for rate in rates]).max()
        largest = largest.clamp(min=torch.finfo(like.dtype).tiny)
        return [_as_scalar(_on_host(group["lr"]), like) / largest for group in groups]


def _as_scalar(value: float | Tensor, like: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(like).view(())
    return torch.full((), value, device=like.device, dtype=like.dtype)


def _on_host(rate: float | Tensor) -> float | Tensor:
    """As a number, where reading it waits for no device."""
    return rate.item() if isinstance(rate, Tensor) and rate.device.type == "cpu" else rate


def _local_reals(tensor: Tensor) -> Tensor:
    """A view of what this process holds of `tensor`, as pairs of reals where it is complex."""
    tensor = local(tensor)
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _restore_precision(state: dict[str, Any], saved: dict[str, Any], param: Tensor) -> None:
    """Undo what torch's load_state_dict (2.13) does to us.

    It casts every state to the parameter's dtype, which rounds float32 moments of a bf16 parameter;
    and it leaves `step` on whatever device the checkpoint was mapped to, where reading it would
    synchronise at every step.
    """
    for name, value in saved.items():
        if name == "step":
            state[name] = value.detach().cpu().clone()
        elif isinstance(value, Tensor) and value.is_floating_point() and value.dtype != state[name].dtype:
            state[name] = value.to(device=param.device, copy=True)


def _check_groups(saved: list[dict[str, Any]], own: list[dict[str, Any]]) -> None:
    if any("p" not in group for group in saved):
        raise ValueError(
            "This checkpoint's optimizer state has no exponent p: it was written by another optimizer than "
            "Padam. Resume with the optimizer that wrote it, or start from the model weights alone."
        )
    if [_describe(group) for group in saved] != [_describe(group) for group in own]:
        differing = "; ".join(
            f"group {i}: {theirs} in the checkpoint, {ours} here"
            for i, (theirs, ours) in enumerate(_pairs(saved, own))
            if theirs != ours
        )
        raise ValueError(
            f"The checkpoint has {len(saved)} parameter groups and this optimizer {len(own)}, and they differ: "
            f"{differing}. Train the same parameters with the same labels and overrides as the run that wrote it."
        )


def _say_what_is_overruled(saved: list[dict[str, Any]], own: list[dict[str, Any]]) -> None:
    """Of settings that the checkpoint's run began with, not of what callbacks have made of them since."""
    overruled: dict[str, str] = {}
    for theirs, ours in zip(saved, own, strict=True):
        for name in _SETTINGS:
            before, now = (group.get(f"initial_{name}", group.get(name)) for group in (theirs, ours))
            if name == "betas":
                before, now = list(before or ()), list(now or ())  # a tuple or, from a checkpoint, perhaps a list
            if before != now:
                overruled.setdefault(name, f"{name}={now} by the checkpoint's {before}")
    if overruled:
        warnings.warn(
            f"Resuming overrules {', '.join(overruled.values())}: settings come with the optimizer's state. To change "
            "p or weight_decay in a resumed run, use a schedule.",
            stacklevel=3,
        )


def _pairs(saved: list[dict[str, Any]], own: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    for i in range(max(len(saved), len(own))):
        yield tuple(_describe(groups[i]) if i < len(groups) else "nothing" for groups in (saved, own))  # type: ignore[misc]


def _describe(group: dict[str, Any]) -> str:
    label = f"{group['pathway']}/{group['component']} " if "pathway" in group else ""
    return f"{label}{len(group['params'])} tensors"


def _check_hyperparameters(group: dict[str, Any]) -> None:
    lr, weight_decay = group["lr"], group["weight_decay"]
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            raise ValueError(f"A tensor lr must have one element, got shape {tuple(lr.shape)}.")
    elif not (math.isfinite(lr) and lr >= 0):
        raise ValueError(f"Invalid learning rate: lr must be finite and >= 0, got {lr}.")
    if not (isinstance(group["betas"], (tuple, list)) and len(group["betas"]) == 2):
        raise ValueError(f"betas must be a pair of numbers, got {group['betas']!r}.")
    for i, beta in enumerate(group["betas"]):
        if not 0 <= beta < 1:
            raise ValueError(f"Invalid beta parameter at index {i}: each must lie in [0, 1), got {beta}.")
    if not (math.isfinite(group["eps"]) and group["eps"] >= 0):
        raise ValueError(f"Invalid epsilon value: eps must be finite and >= 0, got {group['eps']}.")
    if isinstance(group["p"], bool) or not (isinstance(group["p"], (int, float)) and math.isfinite(group["p"])):
        raise ValueError(f"Invalid exponent: p must be a finite number, got {group['p']!r}.")
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise ValueError(f"Invalid weight_decay value: it must be finite and >= 0, got {weight_decay}.")
