"""Vega-Lite specifications: the few shapes of chart that a report has, as pure functions of numbers.

Names that come from files are only ever values in the data or a scale's domain, never part of an expression. Every
specification filters by the parameter `hidden`, a list of runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_pdyn.report.recorded_run import Series
from hf_pdyn.report.theme import Palette, Spec

VERSION = "6.4"
SCHEMA = f"https://vega.github.io/schema/vega-lite/v{VERSION}.json"

_DECADES_FOR_A_LOGARITHM = 1.5
_HEIGHT = 250


@dataclass(frozen=True)
class Line:
    """One line of a chart: a run's, and where a chart has several quantities of a run, which.

    partial: the steps whose points stand apart from the line, as they are means over part of an interval.
    """

    run: str
    series: Series
    variant: str = ""
    partial: frozenset[int] = frozenset()


def lines(
    data: Sequence[Line],
    palette: Palette,
    *,
    y_title: str,
    variants: Sequence[str] = (),
    stepped: bool = False,
    logarithmic: bool | None = None,
) -> Spec:
    """Lines over steps, coloured by run and dashed by variant; partial points are hollow and on no line.

    logarithmic: None decides by the values: a logarithm where all are positive and span one and a half decades.
    """
    values = [value for line in data for value in line.series.values]
    scale: Spec = {"zero": False}
    if spans_decades(values) if logarithmic is None else logarithmic:
        scale = {"type": "log", "nice": False}
    used = [variant for variant in variants if any(line.variant == variant for line in data)]
    columns = [columns for line in data for columns in _columns(line)]
    alone, partial = (any(own.get(flag) for own in columns) for flag in ("alone", "partial"))
    encoding: Spec = {
        "x": _over_steps(),
        "y": {
            "field": "value",
            "type": "quantitative",
            "title": y_title,
            "scale": scale,
            "axis": _value_axis(values, logarithmic="type" in scale),
        },
        "color": palette.of_runs,
        "tooltip": [
            {"field": "run", "type": "nominal", "title": "run"},
            *([{"field": "variant", "type": "nominal", "title": "which"}] if used else []),
            {"field": "step", "type": "quantitative", "title": "step", "format": ",d"},
            {"field": "epoch", "type": "quantitative", "title": "epoch", "format": ".3~f"},
            {"field": "value", "type": "quantitative", "title": y_title, "format": ".5~g"},
        ],
    }
    if len(used) > 1:
        dashes = [[1, 0], [5, 3], [1.5, 2.5], [8, 3, 2, 3]]
        encoding["strokeDash"] = {
            "field": "variant",
            "type": "nominal",
            "title": None,
            "scale": {"domain": used, "range": [dashes[i % len(dashes)] for i in range(len(used))]},
        }
    return _spec(
        columns,
        [{"flatten": ["step", "epoch", "value"]}, _only_shown()],
        height=_HEIGHT,
        encoding=encoding,
        layer=[
            {
                **({"transform": [{"filter": "!datum.partial"}]} if partial else {}),
                "mark": {"type": "line", "strokeWidth": 1.8, **({"interpolate": "step-after"} if stepped else {})},
            },
            {
                "params": [
                    {
                        "name": "nearest",
                        "select": {"type": "point", "on": "pointerover", "nearest": True, "clear": "pointerout"},
                    }
                ],
                "mark": {"type": "point", "filled": True, "size": 50},
                "encoding": {
                    "opacity": {"condition": [{"param": "nearest", "empty": False, "value": 1}], "value": 0},
                    "strokeDash": {"value": [1, 0]},
                },
            },
            *([_points("alone", filled=True)] if alone else []),
            *([_points("partial", filled=False)] if partial else []),
        ],
    )


def decisions(rows: Sequence[Mapping[str, Any]], palette: Palette, branches: Sequence[str]) -> Spec:
    """The staircase of p with a mark at every decision, whose shape is the branch. rows: as recorded, with `run`."""
    tooltip = [
        {"field": "run", "type": "nominal"},
        {"field": "branch", "type": "nominal"},
        {"field": "step", "type": "quantitative", "format": ",d"},
        {"field": "p", "type": "quantitative", "title": "p from then on", "format": ".4~g"},
        {"field": "weight_norm", "type": "quantitative", "title": "D_w", "format": ".4~g"},
        {"field": "bias_norm", "type": "quantitative", "title": "D_b", "format": ".4~g"},
        {"field": "weight_change", "type": "quantitative", "title": "change of D_w", "format": "+.2%"},
        {"field": "bias_change", "type": "quantitative", "title": "change of D_b", "format": "+.2%"},
        {"field": "bias_norm_min", "type": "quantitative", "title": "smallest D_b", "format": ".4~g"},
    ]
    return _spec(
        list(rows),
        [_only_shown()],
        height=_HEIGHT,
        encoding={
            "x": _over_steps(),
            "y": {
                "field": "p",
                "type": "quantitative",
                "title": "p for the coming interval",
                "scale": {"zero": False},
                "axis": _value_axis([row["p"] for row in rows]),
            },
            "color": palette.of_runs,
        },
        layer=[
            {"mark": {"type": "line", "interpolate": "step-after", "strokeWidth": 1.5, "opacity": 0.55}},
            {
                "mark": {"type": "point", "filled": True, "size": 75, "opacity": 1},
                "encoding": {
                    "shape": {
                        "field": "branch",
                        "type": "nominal",
                        "title": None,
                        "legend": {"columns": {"signal": "max(1, floor(width / 82))"}, "symbolFillColor": "#808894"},
                        "scale": {"domain": list(branches), "range": [_SHAPES[branch] for branch in branches]},
                    },
                    "tooltip": tooltip,
                },
            },
        ],
    )


_SHAPES = {
    "start": "circle",
    "first": "circle",
    "rebound": "diamond",
    "bias_up": "triangle-down",  # the branches that lower p point down
    "bias_down": "triangle-up",
    "hold": "square",
}


def bands(rows: Sequence[Mapping[str, Any]], palette: Palette, *, y_title: str) -> Spec:
    """Quantiles over epochs: the middle half as a band, 5 % to 95 % as rules, the median as a line.

    rows: `run`, `epoch`, `step`, `q05`, `q25`, `median`, `q75`, `q95`, `mean`, each of these None where it is not
    finite, and `nonfinite`, how many losses are not.
    """
    ends = [row[name] for row in rows for name in ("q05", "q25", "median", "q75", "q95") if row[name] is not None]
    scale: Spec = {"type": "log", "nice": False} if spans_decades(ends) else {"zero": False}
    if not ends:
        scale = {"domain": [0, 1]}
    names = {"q05": "5 %", "q25": "25 %", "median": "median", "q75": "75 %", "q95": "95 %", "mean": "mean"}
    y = {
        "type": "quantitative",
        "scale": scale,
        "title": y_title,
        "axis": _value_axis(ends, logarithmic="type" in scale),
    }
    return _spec(
        list(rows),
        [_only_shown()],
        height=_HEIGHT,
        encoding={
            "x": {
                "field": "epoch",
                "type": "quantitative",
                "title": "epoch",
                "scale": {"zero": False, "nice": False, "padding": 12},
                "axis": {"format": ".3~g"},  # of one epoch alone, or a part of one, the default shows 0
            },
            "color": palette.of_runs,
            "tooltip": [
                {"field": "run", "type": "nominal"},
                {"field": "epoch", "type": "quantitative", "format": ".3~f"},
                {"field": "step", "type": "quantitative", "format": ",d"},
                *(
                    {"field": key, "type": "quantitative", "title": title, "format": ".4~g"}
                    for key, title in names.items()
                ),
                {"field": "nonfinite", "type": "quantitative", "title": "not finite", "format": ",d"},
            ],
        },
        layer=[
            {
                "transform": [{"filter": "isValid(datum.q75)"}],
                "mark": {"type": "area", "opacity": 0.18},
                "encoding": {"y": {**y, "field": "q25"}, "y2": {"field": "q75"}},
            },
            {
                "transform": [{"filter": "isValid(datum.q95)"}],
                "mark": {"type": "rule", "opacity": 0.5, "strokeWidth": 1.5},
                "encoding": {"y": {**y, "field": "q05"}, "y2": {"field": "q95"}},
            },
            {"mark": {"type": "line", "strokeWidth": 1.8}, "encoding": {"y": {**y, "field": "median"}}},
            {
                "transform": [{"filter": "isValid(datum.median)"}],
                "mark": {"type": "point", "filled": True, "size": 45},
                "encoding": {"y": {**y, "field": "median"}},
            },
        ],
    )


def heat_map(
    rows: Mapping[str, Sequence[float]],
    *,
    run: str,
    steps: Sequence[int],
    value_title: str,
    labels: Mapping[str, str],
) -> Spec:
    """Layers by steps, coloured by the logarithm of positive values; what is missing or zero stays blank.

    rows: by layer, in their order from top to bottom, the values at `steps`, NaN where there are none. labels: what to
    write for each layer.
    """
    positive = [value for values in rows.values() for value in values if value > 0]
    low, high = (min(positive), max(positive)) if positive else (1.0, 1.0)
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
    return _spec(
        data,
        [{"flatten": ["step", "value"]}, {"filter": "isValid(datum.value)"}],
        padding={"left": 0, "top": 5, "right": 14, "bottom": 5},  # the last step is written under its end
        height=max(cell * len(rows), 60),
        mark={"type": "rect"},
        encoding={
            "x": {
                "field": "step",
                "type": "ordinal",
                "title": _STEP,
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
                    "values": _round_values(low, high),
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


def matrix(rows: Sequence[Mapping[str, Any]], names: Sequence[str], *, value_title: str) -> Spec:
    """A square of numbers in [0, 1]. rows: `run`, `other`, `value`, which is None where there is nothing to compare."""
    axis = {"labelLimit": 140, "ticks": False, "domain": False, "title": None}
    texts = [{"mark": {"type": "text", "fontSize": 11}, "encoding": {"color": _on_viridis(), "text": _two_digits()}}]
    return _spec(
        list(rows),
        [_only_shown(), {"filter": "indexof(hidden, datum.other) < 0"}],
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


def spans_decades(values: Sequence[float]) -> bool:
    """Whether a logarithmic axis shows them better."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    return low > 0 and math.log10(high / low) >= _DECADES_FOR_A_LOGARITHM


def short(value: float) -> float:
    """The number to five digits, which is more than a screen shows."""
    return float(f"{value:.5g}")


_STEP = "optimizer step"


def _spec(values: list[Any], transform: list[Spec], *, height: int, **rest: Any) -> Spec:
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


def _only_shown() -> Spec:
    return {"filter": "indexof(hidden, datum.run) < 0"}


def _round_values(low: float, high: float) -> list[float]:
    """Of the numbers between them, those that are written shortest: at least two, at most seven."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5), range(1, 10)):
        within = [v for power in powers for digit in digits if low <= (v := float(f"{digit}e{power}")) <= high]
        if len(within) >= 2:
            return within[:: math.ceil(len(within) / 7)]
    return [float(f"{low:.2g}"), float(f"{high:.2g}")]


def _points(flag: str, *, filled: bool) -> Spec:
    """Marks for the points that no line shows: those that stand alone, and partial ones."""
    return {
        "transform": [{"filter": f"datum.{flag}"}],
        "mark": {"type": "point", "filled": filled, "size": 40},
        "encoding": {"strokeDash": {"value": [1, 0]}},
    }


def _columns(line: Line) -> list[Spec]:
    """The line's points by column, then its partial points, if any."""
    points = list(zip(line.series.steps, line.series.epochs, line.series.values, strict=True))
    complete = [point for point in points if point[0] not in line.partial]
    partial = [point for point in points if point[0] in line.partial]
    return [
        {
            "run": line.run,
            "variant": line.variant,
            **flag,
            "step": [step for step, _, _ in chosen],
            "epoch": [None if epoch is None else short(epoch) for _, epoch, _ in chosen],
            "value": [short(value) for _, _, value in chosen],
        }
        for chosen, flag in ((complete, {"alone": len(complete) == 1}), (partial, {"partial": True}))
        if chosen
    ]


def _over_steps() -> Spec:
    return {
        "field": "step",
        "type": "quantitative",
        "title": _STEP,
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


def _value_axis(values: Sequence[float], *, logarithmic: bool = False) -> Spec:
    axis: Spec = {"labelExpr": _LABEL, "tickCount": 5, "labelOverlap": True}
    if logarithmic:  # Vega would draw a grid line for each of 2, 3, ... 9
        low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        digits = (1, 2, 5) if high - low <= 2 else (1,)
        axis["values"] = [float(f"{digit}e{power}") for power in range(low, high + 1) for digit in digits]
    return axis


_LABEL = (
    "datum.value != 0 && (abs(datum.value) < 1e-3 || abs(datum.value) >= 1e6)"
    " ? format(datum.value, '.2~e') : format(datum.value, ',~g')"
)


def _on_viridis() -> Spec:
    return {"condition": {"test": "datum.value > 0.6", "value": "#111"}, "value": "#fff"}


def _two_digits() -> Spec:
    return {"field": "value", "type": "quantitative", "format": ".2f"}
