"""Values that options accept for the fields of parameter groups."""

from __future__ import annotations

import math

_P_LIMIT = 2.0
_LIMITS = {
    "p": (-_P_LIMIT, _P_LIMIT),
    "eps": (0.0, math.inf),
    "weight_decay": (0.0, math.inf),
    "lr": (0.0, math.inf),
    "lr_mult": (0.0, math.inf),
    "momentum": (0.0, 1.0),
    "dampening": (0.0, 1.0),
}
_ADVICE = {"p": " The papers use -0.4 to 0.6, 0.5 is Adam; beyond 2, v^-p overflows at usual gradients."}


def check_limits(name: str, field: str, value: float) -> None:
    """ValueError where `field` of a group cannot be `value`, which the user gave as `name`."""
    low, high = _LIMITS.get(field, (-math.inf, math.inf))
    if not low <= value <= high:
        limits = f">= {low:g}" if high == math.inf else f"in [{low:g}, {high:g}]"
        raise ValueError(f"{name} must be {limits}, got {value:g}.{_ADVICE.get(field, '')}")
