"""Algorithm 1 of *Information allocation dynamics* (IAD): gradient statistics drive the exponent p.

Pure: a state and one interval's observation go in, the next state comes out. It knows neither torch
nor the Trainer; `hf_pdyn.callbacks.PControlCallback` feeds it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from hf_pdyn.common.checkpoint_state import check_keys, damaged
from hf_pdyn.common.numbers import is_count, is_number
from hf_pdyn.policy.limits import check_limits

Branch = Literal["start", "first", "rebound", "bias_up", "bias_down", "hold"]
"""What decided: before any interval, then one name for each branch of Algorithm 1 (lines 6 to 18)."""

BRANCHES: tuple[Branch, ...] = ("start", "first", "rebound", "bias_up", "bias_down", "hold")

_DELTA_EPS = 1e-12
"""The epsilon of IAD Eq. 32, which gives no value. Decisions read only the signs, so none depends on it."""


@dataclass(frozen=True)
class ControlConfig:
    """The constants of Algorithm 1. The paper prints no defaults; these are ours.

    p_min, p_max: the allowed range of p.
    p_step: alpha_p > 0, how far one decision moves p.
    threshold: tau_b > 1; D_b above `threshold` times its minimum counts as a rebound.
    """

    p_min: float = 0.25
    p_max: float = 0.6
    p_step: float = 0.02
    threshold: float = 1.2

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not is_number(value):
                raise ValueError(f"{field.name} must be a finite number, got {value!r}.")
            if field.name in ("p_min", "p_max"):
                check_limits(field.name, "p", value)
        if self.p_min > self.p_max:
            raise ValueError(
                f"p_min must not exceed p_max, got p_min={self.p_min} and p_max={self.p_max}. Raise p_max, or lower "
                "p_min."
            )
        if self.p_step <= 0:
            raise ValueError(f"p_step (alpha_p) must be positive, got {self.p_step}.")
        if self.threshold <= 1:
            raise ValueError(
                f"The rebound threshold (tau_b) must be greater than 1, got {self.threshold}: at 1 or below, "
                "any interval that is not a new minimum would count as a rebound."
            )

    def check_start(self, p: float) -> None:
        """Raise ValueError unless the initial exponent lies in [p_min, p_max]."""
        if not self.p_min <= p <= self.p_max:
            raise ValueError(
                f"The initial p must lie in [p_min, p_max] = [{self.p_min}, {self.p_max}], got p={p}. "
                "Widen the range, or start from a p inside it (optim_args; a resumed run has its checkpoint's p)."
            )


@dataclass(frozen=True)
class ControlState:
    """What Algorithm 1 remembers between intervals, and why it last moved.

    p: the exponent for the coming interval. interval: e, the number of intervals observed.
    bias_norm_min: D_b^min. weight_norm, bias_norm: D_w(e) and D_b(e) of the last interval.
    weight_change, bias_change: delta_w(e), delta_b(e) (Eq. 32). branch: what decided.
    """

    p: float
    interval: int = 0
    bias_norm_min: float | None = None
    weight_norm: float | None = None
    bias_norm: float | None = None
    weight_change: float | None = None
    bias_change: float | None = None
    branch: Branch = "start"

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict; floats survive it bit for bit."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: object) -> ControlState:
        """The inverse of `to_dict`; ValueError for what it cannot have returned."""
        state = cls(**check_keys(values, [field.name for field in dataclasses.fields(cls)], "Algorithm 1's state"))
        norms = (state.bias_norm_min, state.weight_norm, state.bias_norm)
        changes = (state.weight_change, state.bias_change)
        possible = (
            is_number(state.p)
            and is_count(state.interval)
            and state.branch in BRANCHES
            and all(value is None or (is_number(value) and value >= 0) for value in norms)
            and all(value is None or is_number(value) for value in changes)
            # The first interval has norms, the second one changes.
            and all((value is None) == (state.interval == 0) for value in norms)
            and all((value is None) == (state.interval < 2) for value in changes)
            and (state.branch == "start") == (state.interval == 0)
            and (state.branch == "first") == (state.interval == 1)
        )
        if not possible:
            raise damaged(f"Algorithm 1's state cannot be {state}")
        return state


def next_p(state: ControlState, *, weight_norm: float, bias_norm: float, config: ControlConfig) -> ControlState:
    """One interval of Algorithm 1: the state after observing D_w(e) and D_b(e).

    weight_norm, bias_norm: the interval means of the L2 norms of the two groups' gradients (IAD Eq. 31).
    Raises ValueError where one of them is negative or not finite; a caller that excludes such steps
    from its means never sees it.

    Example:
        >>> config, state = ControlConfig(p_step=0.02), ControlState(p=0.5)
        >>> for weight_norm, bias_norm in [(1.0, 0.5), (0.9, 0.4), (0.8, 0.45), (0.9, 0.6)]:
        ...     state = next_p(state, weight_norm=weight_norm, bias_norm=bias_norm, config=config)
        ...     print(f"{state.branch} {state.p:.2f}")
        first 0.50
        bias_down 0.52
        bias_up 0.50
        rebound 0.48
    """
    for name, value in (("weight_norm", weight_norm), ("bias_norm", bias_norm)):
        if not (is_number(value) and value >= 0):
            raise ValueError(f"{name} must be a finite number >= 0, got {value}.")
    observed = dataclasses.replace(
        state,
        interval=state.interval + 1,
        # Line 5 stands before the comparison of line 10: an interval that sets the minimum is no rebound.
        bias_norm_min=bias_norm if state.bias_norm_min is None else min(state.bias_norm_min, bias_norm),
        weight_norm=weight_norm,
        bias_norm=bias_norm,
    )
    if state.weight_norm is None or state.bias_norm is None:
        return dataclasses.replace(observed, branch="first")

    weight_change = _relative_change(weight_norm, state.weight_norm)
    bias_change = _relative_change(bias_norm, state.bias_norm)
    branch = _decide(observed, weight_change, bias_change, config)
    move = {"rebound": -config.p_step, "bias_up": -config.p_step, "bias_down": config.p_step, "hold": 0.0}[branch]
    return dataclasses.replace(
        observed,
        p=min(max(state.p + move, config.p_min), config.p_max),
        weight_change=weight_change,
        bias_change=bias_change,
        branch=branch,
    )


def _decide(state: ControlState, weight_change: float, bias_change: float, config: ControlConfig) -> Branch:
    assert state.bias_norm is not None and state.bias_norm_min is not None
    if state.bias_norm > config.threshold * state.bias_norm_min:
        return "rebound"
    if bias_change > 0 and weight_change <= 0:
        return "bias_up"
    if bias_change < 0 and weight_change <= 0:
        return "bias_down"
    return "hold"


def _relative_change(now: float, before: float) -> float:
    """delta(e) = (D(e) - D(e-1)) / (D(e-1) + eps), IAD Eq. 32."""
    return (now - before) / (before + _DELTA_EPS)
