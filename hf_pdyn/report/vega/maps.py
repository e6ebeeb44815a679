"""Cells and their colours: layers by steps, and runs by runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hf_pdyn.report.theme import Spec
from hf_pdyn.report.vega.basics import STEP, only_shown, round_values, short, spec


def heat_map(
    rows: Mapping[str, Sequence[float]],
    *,
    run: str,
    steps: Sequence[int],
    value_title: str,
    labels: Mapping[str, str],
    bounds: tuple[float, float] | None = None,
) -> Spec:
    """Layers by steps, coloured by the logarithm of positive values; what is missing or zero stays blank.

    rows: by layer, in their order from top to bottom, the values at `steps`, NaN where there are none. labels: what to
    write for each layer. bounds: the smallest and the largest value of the colours, both positive; None takes those of
    the rows.
    """
    low, high = bounds or positive_bounds(value for values in rows.values() for value in values) or (1.0, 1.0)
    if low == high:
        low, high = low / 1.5, high * 1.5
    data = [
        {
            "run": run,
            "layer": labels[layer],
            "name": layer,
            "step": list(steps),
            "value": [short(value) if value > 0 else None for value in values],
        }
        for layer, values in rows.items()
    ]
    cell = 16 if len(rows) <= 20 else 11 if len(rows) <= 60 else 7
    return spec(
        data,
        [{"flatten": ["step", "value"]}, {"filter": "isValid(datum.value)"}],
        padding={"left": 0, "top": 5, "right": 14, "bottom": 5},  # the last step is written under its end
        height=max(cell * len(rows), 60),
        mark={"type": "rect"},
        encoding={
            "x": {
                "field": "step",
                "type": "ordinal",
                "title": STEP,
                "scale": {"domain": list(steps), "paddingInner": 0},
                "axis": {
                    "labelAngle": 0,
                    "labelOverlap": "greedy",
                    "labelSeparation": 12,
                    "format": ",d",
                    "ticks": False,
                },
            },
            "y": {
                "field": "layer",
                "type": "nominal",
                "title": None,
                "sort": None,
                "scale": {"domain": [labels[layer] for layer in rows], "paddingInner": 0},
                "axis": {"labelOverlap": "greedy", "labelLimit": 130, "ticks": False, "domain": False},
            },
            "color": {
                "field": "value",
                "type": "quantitative",
                "title": value_title,
                "scale": {"type": "log", "scheme": "viridis", "domain": [low, high], "nice": False},
                "legend": {
                    "orient": "bottom",
                    "gradientLength": {"signal": "min(width, 260)"},
                    "values": round_values(low, high),
                    "format": "~g",
                },
            },
            "tooltip": [
                {"field": "name", "type": "nominal", "title": "layer"},
                {"field": "step", "type": "quantitative", "format": ",d"},
                {"field": "value", "type": "quantitative", "title": value_title, "format": ".4~g"},
            ],
        },
    )


def positive_bounds(values: Iterable[float]) -> tuple[float, float] | None:
    """The smallest and the largest of those above zero; None where there are none."""
    positive = [value for value in values if value > 0]
    return (min(positive), max(positive)) if positive else None


def matrix(rows: Sequence[Mapping[str, Any]], names: Sequence[str], *, value_title: str) -> Spec:
    """A square of numbers in [0, 1]. rows: `run`, `other`, `value`, which is None where there is nothing to compare."""
    axis = {"labelLimit": 140, "ticks": False, "domain": False, "title": None}
    texts = [{"mark": {"type": "text", "fontSize": 11}, "encoding": {"color": _on_viridis(), "text": _two_digits()}}]
    return spec(
        list(rows),
        [only_shown(), {"filter": "indexof(hidden, datum.other) < 0"}],
        height=max(34 * len(names), 80),
        encoding={
            "x": {"field": "other", "type": "nominal", "sort": list(names), "axis": {**axis, "labelAngle": -35}},
            "y": {"field": "run", "type": "nominal", "sort": list(names), "axis": axis},
            "tooltip": [
                {"field": "run", "type": "nominal", "title": "run"},
                {"field": "other", "type": "nominal", "title": "and"},
                {"field": "value", "type": "quantitative", "title": value_title, "format": ".3f"},
                {"field": "note", "type": "nominal"},
            ],
        },
        layer=[
            {
                "mark": {"type": "rect"},
                "encoding": {
                    "color": {
                        "field": "value",
                        "type": "quantitative",
                        "title": value_title,
                        "scale": {"scheme": "viridis", "domain": [0, 1]},
                        "legend": {"orient": "bottom", "gradientLength": {"signal": "min(width, 260)"}},
                    }
                },
            },
            *(texts if len(names) <= 12 else []),
        ],
    )


def _on_viridis() -> Spec:
    return {"condition": {"test": "datum.value > 0.6", "value": "#111"}, "value": "#fff"}


def _two_digits() -> Spec:
    return {"field": "value", "type": "quantitative", "format": ".2f"}
