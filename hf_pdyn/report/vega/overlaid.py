"""Runs in one chart: lines over steps, decisions, and quantiles over epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hf_pdyn.report.recorded_run import Series
from hf_pdyn.report.theme import Palette, Spec
from hf_pdyn.report.vega.basics import HEIGHT, only_shown, over_steps, short, spans_decades, spec, value_axis

Stepped = Literal["before", "after"]


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
    stepped: Stepped | None = None,
    logarithmic: bool | None = None,
    smooth: bool = True,
) -> Spec:
    """Lines over steps, coloured by run and dashed by variant; partial points are hollow and on no line.

    stepped: of what keeps its value between two points, whether that is the earlier or the later one's: it holds
    "after" or "before" its point. logarithmic: None decides by the values: a logarithm where all are positive and span
    one and a half decades. smooth: whether a page may smooth the lines, which makes sense of noisy ones.
    """
    values = [value for line in data for value in line.series.values]
    scale: Spec = {"zero": False}
    if spans_decades(values) if logarithmic is None else logarithmic:
        scale = {"type": "log", "nice": False}
    used = [variant for variant in variants if any(line.variant == variant for line in data)]
    columns = [columns for line in data for columns in _columns(line)]
    alone, partial = (any(own.get(flag) for own in columns) for flag in ("alone", "partial"))
    encoding: Spec = {
        "x": over_steps(),
        "y": {
            "field": "value",
            "type": "quantitative",
            "title": y_title,
            "scale": scale,
            "axis": value_axis(values, logarithmic="type" in scale),
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
            "legend": {"symbolOpacity": 1},
            "scale": {"domain": used, "range": [dashes[i % len(dashes)] for i in range(len(used))]},
        }
    return spec(
        columns,
        [{"flatten": ["step", "epoch", "value"]}, only_shown()],
        height=HEIGHT,
        usermeta={"over": "step", "smooth": smooth and stepped is None},
        encoding=encoding,
        layer=[
            {
                **({"transform": [{"filter": "!datum.partial"}]} if partial else {}),
                "mark": {"type": "line", "strokeWidth": 1.8, **({"interpolate": f"step-{stepped}"} if stepped else {})},
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
    return spec(
        list(rows),
        [only_shown()],
        height=HEIGHT,
        usermeta={"over": "step"},
        encoding={
            "x": over_steps(),
            "y": {
                "field": "p",
                "type": "quantitative",
                "title": "p for the coming interval",
                "scale": {"zero": False},
                "axis": value_axis([row["p"] for row in rows]),
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


def bands(
    rows: Sequence[Mapping[str, Any]], palette: Palette, *, y_title: str, over: Literal["step", "epoch"] = "epoch"
) -> Spec:
    """Quantiles over epochs or steps: the middle half as a band, 5 % to 95 % as rules, the median as a line.

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
        "axis": value_axis(ends, logarithmic="type" in scale),
    }
    return spec(
        list(rows),
        [only_shown()],
        height=HEIGHT,
        **({"usermeta": {"over": "step"}} if over == "step" else {}),
        encoding={
            "x": over_steps() if over == "step" else _over_epochs(),
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


def _over_epochs() -> Spec:
    return {
        "field": "epoch",
        "type": "quantitative",
        "title": "epoch",
        "scale": {"zero": False, "nice": False, "padding": 12},
        "axis": {"format": ".3~g"},  # of one epoch alone, or a part of one, the default shows 0
    }


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
