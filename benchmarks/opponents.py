"""Optimizers that padam is compared to, by name."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

LR = 1e-5

Build = Callable[[nn.Module], Optimizer]


class UclamlPadam(Optimizer):
    """What the authors of Padam published computes, one tensor after the other: denom = (sqrt(v) + eps)^(2p)."""

    def __init__(self, params: object, lr: float, partial: float) -> None:
        super().__init__(params, {"lr": lr, "partial": partial})  # type: ignore[arg-type]

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for param in group["params"]:
                state = self.state[param]
                if not state:
                    state.update(step=0, m=torch.zeros_like(param), v=torch.zeros_like(param))
                state["step"] += 1
                self._move(param, state["m"], state["v"], state["step"], group)

    def _move(self, param: Tensor, m: Tensor, v: Tensor, t: int, group: dict[str, float]) -> None:
        m.mul_(0.9).add_(param.grad, alpha=0.1)  # type: ignore[arg-type]
        v.mul_(0.999).addcmul_(param.grad, param.grad, value=0.001)  # type: ignore[arg-type]
        step_size = group["lr"] * (1 - 0.999**t) ** 0.5 / (1 - 0.9**t)
        param.addcdiv_(m, v.sqrt().add_(1e-8).pow_(2 * group["partial"]), value=-step_size)


def _pytorch_optimizer(model: nn.Module) -> Optimizer:
    from pytorch_optimizer import PAdam

    return PAdam(model.parameters(), lr=LR, partial=0.37)


def _torchao(model: nn.Module) -> Optimizer:
    from torchao.optim import AdamW8bit

    return AdamW8bit(model.parameters(), lr=LR)


def _bitsandbytes(model: nn.Module) -> Optimizer:
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(model.parameters(), lr=LR)


def is_installed(name: str) -> bool:
    """Whether the library of an opponent is there; those of torch and of ours always are."""
    return name in ("adamw", "uclaml", "padam") or find_spec(name) is not None


OPPONENTS: dict[str, Build] = {
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), lr=LR, fused=True),
    "pytorch_optimizer": _pytorch_optimizer,
    "torchao": _torchao,
    "bitsandbytes": _bitsandbytes,
    "uclaml": lambda model: UclamlPadam(model.parameters(), lr=LR, partial=0.37),
}
