"""The moments that an Adam-like optimizer keeps of a parameter, in the terms of the p-update."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hf_pdyn.integrations import low_bit
from hf_pdyn.optim import state_format
from hf_pdyn.optim.equation import usable_eps
from hf_pdyn.optim.step_work import group_lr
from hf_pdyn.optim.update_list import local_reals
from hf_pdyn.tensors.norms import accumulator_dtype
from hf_pdyn.tensors.sharding import Piece


@dataclass(frozen=True, eq=False)
class Moments:
    """What m_hat / (v_hat + eps)^p is made of, for one piece of a parameter.

    exp_avg, exp_avg_sq: m and what stands under the power, as views. of_m, of_v: 1 - beta^t of each, numbers or 0-d
    tensors. eps: inside the power; an optimizer with Adam's epsilon outside the root has its square here.
    """

    exp_avg: Tensor
    exp_avg_sq: Tensor
    of_m: Any
    of_v: Any
    eps: float

    def weighted(self, most: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(m_hat^2 / (v_hat + eps), v_hat + eps) of so many elements at a time; float32, one-dimensional, new."""
        m, v = self.exp_avg.reshape(-1), self.exp_avg_sq.reshape(-1)
        for part_of_m, part_of_v in zip(torch.split(m, most), torch.split(v, most), strict=True):
            x = part_of_v.float().div(self.of_v).add_(self.eps)
            # Not m_hat^2 first: it has no normal float32 from |m_hat| = 1e-19 down.
            yield part_of_m.float().div(self.of_m).div_(x.sqrt()).square_(), x


def moments_of(optimizer: Optimizer, group: Mapping[str, Any], piece: Piece) -> Moments | str:
    """The moments of a piece after a step, or why there are none."""
    name = type(optimizer).__name__
    state = optimizer.state.get(piece.holder, {})
    second = "max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"
    m: Tensor | None
    v: Tensor | None
    try:
        if group.get("state_dtype", "fp32") != "fp32" and second in state:  # of Padam
            held = [piece.of(local_reals(state[moment])) for moment in ("exp_avg", "exp_avg_sq", second)]
            m, _, v = state_format.decode(*held)
            piece = Piece(piece.holder)
        else:
            m, v = low_bit.moment(state, "exp_avg"), low_bit.moment(state, second)
    except ValueError as error:
        return f"{name} cannot be read: {error}"
    if m is None or v is None or "betas" not in group or "step" not in state:
        return f"{name} keeps no first and second moment of its gradients"
    t = step_count(state["step"])
    beta1, beta2 = group["betas"][:2]
    eps = group["eps"] if "p" in group else group["eps"] ** 2
    m, v = (piece.of(local_reals(moment)) for moment in (m, v))
    return Moments(m, v, 1 - beta1**t, 1 - beta2**t, usable_eps(eps))


def step_count(step: Any) -> Any:
    """An optimizer's count of steps as a number, or a 0-d tensor where it stands on a device that nobody waits for."""
    if not isinstance(step, Tensor):
        return step
    # In float32, 1 - beta^t has lost five digits when t is small.
    return step.item() if step.is_cpu else step.to(accumulator_dtype(step.device))


def relative_lr(group: Mapping[str, Any], largest: Any) -> Any:
    """The group's learning rate over the largest of all groups; 1 where none moves anything."""
    lr = group_lr(group)
    if isinstance(lr, Tensor) or isinstance(largest, Tensor):
        return torch.where(torch.as_tensor(largest) > 0, lr / largest, 1.0)
    return lr / largest if largest > 0 else 1.0
