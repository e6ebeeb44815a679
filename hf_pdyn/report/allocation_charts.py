"""Charts of allocation curves: what every p would make of a run's moments, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from hf_pdyn.policy.allocation_curve import (
    ADAM,
    EXPONENTS,
    P_MAX,
    P_MIN,
    PowerMoments,
    cosine,
    lr_factor,
    total,
    update_ratio,
)
from hf_pdyn.report import vega
from hf_pdyn.report.allocation_curves import AllocationCurves
from hf_pdyn.report.chart import Chart, Drawing
from hf_pdyn.report.recorded_run import RecordedRun
from hf_pdyn.report.vega import Curve

_CURVES_OF_A_CHART = 12
_EXPONENTS = tuple(s / 2 for s in EXPONENTS)
"""The p at which M needs no interpolation."""


@dataclass(frozen=True)
class _Measured:
    """The moments of a step. p: the run's from then on, None where it is not known or not on the curve."""

    step: int
    p: float | None
    weight: PowerMoments | None
    bias_like: PowerMoments | None
    whole: PowerMoments


OverP = Callable[[float], float]


def _balance(at: _Measured) -> OverP | None:
    if at.weight is None or at.bias_like is None:
        return None
    return partial(update_ratio, at.weight, at.bias_like)


def _size(at: _Measured) -> OverP:
    return partial(lr_factor, at.whole)


def _direction(at: _Measured) -> OverP:
    return partial(cosine, at.whole)


@dataclass(frozen=True)
class _Quantity:
    """What a chart shows over p.

    now: a sentence on the newest step, with its `step`, its `p`, the `value` there and that at `adam`. of: the quantity
    as a function of p, None where a pathway is missing. logarithmic: None decides by the values.
    """

    key: str
    title: str
    y_title: str
    note: str
    now: str
    of: Callable[[_Measured], OverP | None]
    logarithmic: bool | None


_QUANTITIES = (
    _Quantity(
        "balance",
        "Update balance over p",
        "U_w / U_b",
        "Norm of the weights' update over the bias-like one's. Where a curve rises, a larger p gives weights more.",
        "At step {step:,}, p = {p:.3g} gives {value:.3g}, Adam {adam:.3g}.",
        _balance,
        None,
    ),
    _Quantity(
        "lr_factor",
        "Size over p",
        "c(p)",
        "How many times smaller than Adam's the raw update is; update_scale=adam makes up for it.",
        "At step {step:,}, p = {p:.3g} has {value:.3g}.",
        _size,
        True,
    ),
    _Quantity(
        "cosine",
        "Direction over p",
        "cosine to Adam's update",
        "Where it is 1, p is a learning rate and nothing else.",
        "At step {step:,}, p = {p:.3g} has {value:.3g}.",
        _direction,
        False,
    ),
)


def allocation_charts(drawing: Drawing) -> tuple[Chart, ...]:
    """U_w / U_b, c and the cosine to Adam's update over p, of every run that has them."""
    return tuple(chart for run in drawing.runs for chart in _of_run(drawing, run))


def _of_run(drawing: Drawing, run: RecordedRun) -> Iterator[Chart]:
    curves = AllocationCurves.of(run.allocation)
    steps = drawing.evenly(curves.steps, _CURVES_OF_A_CHART)
    measured = [at for step in steps if (at := _measured(curves, step)) is not None]
    for quantity in _QUANTITIES:
        known = [(at, over_p) for at in measured if (over_p := quantity.of(at)) is not None]
        if known:
            spec = vega.over_p(
                [_curve(at, over_p) for at, over_p in known],
                _EXPONENTS,
                run=run.name,
                marked=ADAM,
                y_title=quantity.y_title,
                logarithmic=quantity.logarithmic,
            )
            note = f"{quantity.note} {_now(quantity, *known[-1])}Dots: the run's p. Dashed: Adam."
            key = f"allocation-{quantity.key}-run{drawing.runs.index(run)}"
            yield Chart(key, quantity.title, note, spec, run=run.name, part="pathways")


def _measured(curves: AllocationCurves, step: int) -> _Measured | None:
    moments, p = curves.at(step), curves.p_at(step)
    weight, bias_like = moments.get("weight"), moments.get("bias_like")
    known = [pathway for pathway in (weight, bias_like) if pathway is not None]
    if not known:
        return None
    return _Measured(step, p if p is not None and P_MIN <= p <= P_MAX else None, weight, bias_like, total(known))


def _curve(at: _Measured, over_p: OverP) -> Curve:
    own = None if at.p is None else (at.p, over_p(at.p))
    return Curve(at.step, [over_p(p) for p in _EXPONENTS], own)


def _now(quantity: _Quantity, at: _Measured, over_p: OverP) -> str:
    """The sentence on a step; nothing where the run's p is not known."""
    if at.p is None:
        return ""
    return quantity.now.format(step=at.step, p=at.p, value=over_p(at.p), adam=over_p(ADAM)) + " "
