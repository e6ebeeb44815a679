"""The p-update one scalar at a time in Python floats (float64), straight from the paper's Eqs. 17, 18.

Slow on purpose: no tensor operation, no shortcut for special exponents, nothing shared with `hf_pdyn`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class ScalarState:
    t: int = 0
    m: float = 0.0
    v: float = 0.0
    v_max: float = 0.0


@dataclass
class PadamReference:
    """A flat list of parameters, all in one group.

    rounding: what storing a parameter does to it, for parameters of low precision.
    """

    theta: list[float]
    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-16
    p: float = 0.5
    weight_decay: float = 0.0
    decoupled_weight_decay: bool = True
    amsgrad: bool = False
    maximize: bool = False
    update_scale: str = "raw"
    bias_correction: str = "eq18"
    nonfinite: str = "apply"
    rounding: Callable[[float], float] = float
    state: list[ScalarState] = field(default_factory=list)
    last_update: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.state = [ScalarState() for _ in self.theta]

    def step(self, gradient: list[float]) -> None:
        if self.nonfinite == "skip" and not all(math.isfinite(g) for g in gradient):
            return
        for i, g in enumerate(gradient):
            if self.maximize:
                g = -g
            if not self.decoupled_weight_decay:
                g = g + self.weight_decay * self.theta[i]
            s = self.state[i]
            s.t += 1
            s.m = self.beta1 * s.m + (1 - self.beta1) * g
            s.v = self.beta2 * s.v + (1 - self.beta2) * g * g
            s.v_max = max(s.v_max, s.v)
        directions = [self.direction(s, self.p) for s in self.state]
        c = 1.0
        if self.update_scale == "adam":
            at_half = [self.direction(s, 0.5) for s in self.state]
            if any(directions):
                c = math.sqrt(sum(d * d for d in at_half) / sum(d * d for d in directions))
        self.last_update = [-self.lr * c * d for d in directions]
        for i, update in enumerate(self.last_update):
            decay = self.lr * self.weight_decay * self.theta[i] if self.decoupled_weight_decay else 0.0
            self.theta[i] = self.rounding(self.theta[i] - decay + update)

    def direction(self, s: ScalarState, p: float) -> float:
        v = s.v_max if self.amsgrad else s.v
        if self.bias_correction == "padam":
            scale = math.sqrt(1 - self.beta2**s.t) / (1 - self.beta1**s.t)
            return scale * s.m / (math.sqrt(v) + math.sqrt(self.eps)) ** (2 * p)
        m_hat = s.m / (1 - self.beta1**s.t)
        v_hat = v / (1 - self.beta2**s.t)
        return m_hat / (v_hat + self.eps) ** p
