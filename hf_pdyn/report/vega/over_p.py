"""Curves over the exponent p, one a step, with time as colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hf_pdyn.report.theme import Spec
from hf_pdyn.report.vega.basics import HEIGHT, STEP, short, spans_decades, spec, value_axis

_NEUTRAL = "#808894"
_TICKS = (-0.25, 0, 0.25, 0.5, 0.75, 1)


@dataclass(frozen=True)
class Curve:
    """The values of a step at the exponents of its chart, all positive.

    own: the run's p and the value there, None where p is not known.
    """

    step: int
    values: Sequence[float]
    own: tuple[float, float] | None


def over_p(
    curves: Sequence[Curve],
    exponents: Sequence[float],
    *,
    run: str,
    marked: float,
    y_title: str,
    logarithmic: bool | None = None,
) -> Spec:
    """The curves of a run by step, at least one, with dots at its own p.

    marked: the exponent that a dashed line stands at. logarithmic: None decides by the values.
    """
    values = [value for curve in curves for value in curve.values]
    if logarithmic is None:
        logarithmic = spans_decades(values)
    data = [
        {
            "run": run,
            "step": curve.step,
            "p": list(map(short, exponents)),
            "value": list(map(short, curve.values)),
        }
        for curve in curves
    ]
    data += [
        {"run": run, "step": curve.step, "p": [short(curve.own[0])], "value": [short(curve.own[1])], "own": True}
        for curve in curves
        if curve.own is not None
    ]
    legend = _LEGEND if len(curves) > 1 else None
    colour: Spec = {"field": "step", "type": "quantitative", "title": STEP, "legend": legend}
    dots: Spec = {"transform": [{"filter": "datum.own"}]}
    return spec(
        data,
        [{"flatten": ["p", "value"]}],
        height=HEIGHT,
        encoding={
            "x": {
                "field": "p",
                "type": "quantitative",
                "title": "p",
                "scale": {"domain": [exponents[0], exponents[-1]], "nice": False},
                "axis": {"values": list(_TICKS), "format": ".2~f"},
            },
            "y": {
                "field": "value",
                "type": "quantitative",
                "title": y_title,
                "scale": {"type": "log", "nice": False} if logarithmic else {"zero": False},
                "axis": value_axis(values, logarithmic=logarithmic),
            },
            "tooltip": [
                {"field": "step", "type": "quantitative", "format": ",d"},
                {"field": "p", "type": "quantitative", "format": ".3~g"},
                {"field": "value", "type": "quantitative", "title": y_title, "format": ".4~g"},
            ],
        },
        layer=[
            {
                "data": {"values": [{"p": marked}]},
                "mark": {"type": "rule", "strokeDash": [3, 3], "opacity": 0.7},
                "encoding": {
                    "y": {"value": 0},
                    "y2": {"value": HEIGHT},
                    "color": {"value": _NEUTRAL},
                    "tooltip": {"value": None},
                },
            },
            {
                "transform": [{"filter": "!datum.own"}],
                "mark": {"type": "line", "strokeWidth": 1.6},
                "encoding": {
                    "color": colour,
                    "detail": {"field": "step"},
                    "tooltip": {"value": None},
                },
            },
            {**dots, "mark": {"type": "point", "filled": True, "size": 95, "opacity": 1, "color": _NEUTRAL}},
            # A disc that is all stroke: with a fill, the legend would show points in place of a gradient.
            {
                **dots,
                "mark": {"type": "point", "size": 14, "strokeWidth": 4, "opacity": 1},
                "encoding": {"color": colour},
            },
            {
                "params": [
                    {
                        "name": "nearest",
                        "select": {"type": "point", "on": "pointerover", "nearest": True, "clear": "pointerout"},
                    }
                ],
                "mark": {"type": "point", "filled": True, "size": 50, "color": _NEUTRAL},
                "encoding": {"opacity": {"condition": [{"param": "nearest", "empty": False, "value": 1}], "value": 0}},
            },
        ],
    )


_LEGEND: Spec = {
    "orient": "bottom",
    "gradientLength": {"signal": "min(width, 260)"},
    "format": ",d",
    "tickMinStep": 1,
    "tickCount": 4,
}
