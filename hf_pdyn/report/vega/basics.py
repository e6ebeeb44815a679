"""What the specifications share: version, size, axes, the filter of hidden runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from hf_pdyn.report.theme import Spec

VERSION = "6.4"
SCHEMA = f"https://vega.github.io/schema/vega-lite/v{VERSION}.json"
HEIGHT = 250
STEP = "optimizer step"

_DECADES_FOR_A_LOGARITHM = 1.5
_LABELLED_DECADES = 7


def spec(values: list[Any], transform: list[Spec], *, height: int, **rest: Any) -> Spec:
    """A specification of this data, as wide as the page lets it be; `rest` is what it shows.

    `usermeta` tells the page what its readers may change: `over` is "step" where x may be the epoch instead, and
    `smooth` is true where lines may be smoothed.
    """
    return {
        "$schema": SCHEMA,
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "data": {"values": values},
        "params": [{"name": "hidden", "value": []}],
        "transform": transform,
        **rest,
    }


def only_shown() -> Spec:
    """The transform that leaves out hidden runs."""
    return {"filter": "indexof(hidden, datum.run) < 0"}


def over_steps() -> Spec:
    """The encoding of x by optimizer step."""
    return {
        "field": "step",
        "type": "quantitative",
        "title": STEP,
        "axis": {
            "format": ",d",
            "tickMinStep": 1,
            "tickCount": 5,
            "labelOverlap": True,
            "labelSeparation": 8,
            "labelFlush": True,
        },
        "scale": {"nice": False},
    }


def value_axis(values: Sequence[float], *, logarithmic: bool = False) -> Spec:
    """The axis of these values, all positive where it is logarithmic."""
    axis: Spec = {"labelExpr": _LABEL, "tickCount": 5, "labelOverlap": True}
    if logarithmic:  # Vega would draw a grid line for each of 2, 3, ... 9
        low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        digits = (1, 2, 5) if high - low <= 2 else (1,)
        every = math.ceil((high - low) / _LABELLED_DECADES) or 1
        powers = [power for power in range(low, high + 1) if power % every == 0]
        axis["values"] = [float(f"{digit}e{power}") for power in powers for digit in digits]
    return axis


_LABEL = (
    "datum.value != 0 && (abs(datum.value) < 1e-3 || abs(datum.value) >= 1e6)"
    " ? format(datum.value, '.2~e') : format(datum.value, ',~g')"
)


def spans_decades(values: Sequence[float]) -> bool:
    """Whether a logarithmic axis shows them better."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    return low > 0 and math.log10(high / low) >= _DECADES_FOR_A_LOGARITHM


def short(value: float) -> float:
    """The number to five digits, which is more than a screen shows."""
    return float(f"{value:.5g}")


def round_values(low: float, high: float) -> list[float]:
    """The numbers between `low` and `high` that are written shortest: at least two, at most seven."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5), range(1, 10)):
        within = [v for power in powers for digit in digits if low <= (v := float(f"{digit}e{power}")) <= high]
        if len(within) >= 2:
            return within[:: math.ceil(len(within) / 7)]
    return [float(f"{low:.2g}"), float(f"{high:.2g}")]
