"""The p-update of many networks at once, each with its own learning rate and exponents: that of `hf_pdyn.Padam`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .stacked_networks import StackedNetworks, kind_of

BETA1, BETA2 = 0.9, 0.999


@dataclass(frozen=True)
class Training:
    """How one network is trained.

    p: of weights; p_norm, p_bias: of normalisation and of the classifier's bias, None: p. eps: inside the power. seed:
    of the initial weights and the order of images. lr_factors: of every epoch, on top of the schedule.
    """

    p: float
    lr: float
    seed: int
    p_norm: float | None = None
    p_bias: float | None = None
    update_scale: str = "raw"
    eps: float = 1e-16
    lr_scheduler: str = "cosine"
    lr_factors: tuple[float, ...] | None = None

    def rate(self, step: int, steps: int, epoch: int) -> float:
        """The learning rate of a step, counted from 0, of so many."""
        decay = 1.0 if self.lr_scheduler == "constant" else (1 + math.cos(math.pi * step / steps)) / 2
        return self.lr * decay * (1.0 if self.lr_factors is None else self.lr_factors[epoch])


class StackedPadam:
    """Padam of every network: Eq. 18, with the update scale matched where that is asked for."""

    def __init__(self, networks: StackedNetworks, trainings: Sequence[Training]) -> None:
        self._values, self._sizes = networks.values, networks.sizes
        device = networks.values.device
        self._exp_avg, self._exp_avg_sq = (torch.zeros_like(networks.values, requires_grad=False) for _ in range(2))
        self._eps = torch.tensor([one.eps for one in trainings], device=device)[:, None]
        matched = [[one.update_scale == "adam"] for one in trainings]
        self._any_matched, self._matched = [True] in matched, torch.tensor(matched, device=device)
        kinds = [kind_of(name) for name in networks.names]
        of_kinds = [{"weight": one.p, "norm": one.p_norm, "bias": one.p_bias} for one in trainings]
        table = [[one["weight"] if one[kind] is None else one[kind] for kind in kinds] for one in of_kinds]
        self.set_p(torch.tensor(table, dtype=torch.float32))
        self._step = 0

    def set_p(self, by_tensor: Tensor) -> None:
        """by_tensor: (networks, tensors)."""
        sizes = torch.tensor(self._sizes)
        self._p = by_tensor.repeat_interleave(sizes, 1).to(self._values.device)

    @torch.no_grad()
    def step(self, grads: Tensor, rates: Tensor) -> Tensor:
        """Move all networks, and return by what; rates: (networks, 1)."""
        self._step += 1
        self._exp_avg.lerp_(grads, 1 - BETA1)
        self._exp_avg_sq.mul_(BETA2).addcmul_(grads, grads, value=1 - BETA2)
        m_hat, v_hat = self._exp_avg / (1 - BETA1**self._step), self.v_hat() + self._eps
        update = m_hat * v_hat.pow(-self._p)
        if self._any_matched:
            adams = (m_hat * v_hat.rsqrt()).square().sum(1, keepdim=True)
            scale = (adams / update.square().sum(1, keepdim=True)).sqrt()
            update *= torch.where(self._matched, scale, 1.0)
        update *= -rates
        self._values += update
        return update

    def v_hat(self) -> Tensor:
        return self._exp_avg_sq / (1 - BETA2**self._step)

    def share_below_eps(self) -> Tensor:
        """The share of second moments below eps, (networks,)."""
        return (self.v_hat() < self._eps).float().mean(1)
