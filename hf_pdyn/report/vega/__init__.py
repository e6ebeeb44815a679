"""Vega-Lite specifications: the few shapes of chart that a report has, as pure functions of numbers.

Names that come from files are only ever values in the data or a scale's domain, never part of an expression. Every
specification has the parameter `hidden`, a list of runs, by which charts of several runs are filtered.
"""

from hf_pdyn.report.vega.basics import VERSION, short, spans_decades
from hf_pdyn.report.vega.maps import heat_map, matrix, positive_bounds
from hf_pdyn.report.vega.over_p import Curve, over_p
from hf_pdyn.report.vega.overlaid import Line, Stepped, bands, decisions, lines

__all__ = [
    "VERSION",
    "Curve",
    "Line",
    "Stepped",
    "bands",
    "decisions",
    "heat_map",
    "lines",
    "matrix",
    "over_p",
    "positive_bounds",
    "short",
    "spans_decades",
]
