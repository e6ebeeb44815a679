"""Heat maps of layers and of spectra, by run and part."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from hf_pdyn.common.label_names import PATHWAYS
from hf_pdyn.report import vega
from hf_pdyn.report.chart import Chart, Drawing, file_name
from hf_pdyn.report.layer_maps import HeatMap, LayerQuantity, layer_quantities, short_labels
from hf_pdyn.report.recorded_run import RecordedRun
from hf_pdyn.report.scalar_charts import Scalars, scalar_charts

_CELLS_OF_A_REPORT = 300_000
_COLUMNS_OF_A_HEAT_MAP = (12, 120)

_HEAT_MAPS = (("grad_norm", "Gradient norm"), ("update_norm", "Update norm"), ("ratio", "Update / parameter norm"))
_SPECTRA = (
    ("nuc_over_fro", "Nuclear over Frobenius norm"),
    ("effective_rank", "Effective rank"),
    ("stable_rank", "Stable rank"),
    ("nuclear", "Nuclear norm"),
    ("frobenius", "Frobenius norm"),
)
_SPECTRUM = re.compile(r"pdyn/spectrum/(.+)/([^/]+)")
_HEAD = re.compile(r"attention/head \d+")

Quantities = Sequence[tuple[RecordedRun, dict[str, dict[str, LayerQuantity]]]]
"""What is known of the layers of every run."""


def quantities_of(runs: Sequence[RecordedRun]) -> Quantities:
    """Return what `layer_charts` and `spectrum_charts` draw, which is worth taking once."""
    return [(run, layer_quantities(run.layers)) for run in runs]


def layer_charts(drawing: Drawing, quantities: Quantities) -> tuple[Chart, ...]:
    """Gradient, update and their ratio, by run and pathway."""
    found = []
    for run, by_part in quantities:
        for part, by_name in by_part.items():
            if part in PATHWAYS:
                maps = {name: HeatMap.of(quantity) for name, quantity in by_name.items()}
                if {"update_norm", "param_norm"} <= by_name.keys():
                    maps["ratio"] = HeatMap.of(by_name["update_norm"], by_name["param_norm"])
                found += [(run, part, *wanted, maps[wanted[0]]) for wanted in _HEAT_MAPS if wanted[0] in maps]
    return _heat_maps(drawing, found)


def spectrum_charts(drawing: Drawing, quantities: Quantities) -> tuple[Chart, ...]:
    """Means over layers as lines, and every layer of every recorded product as a heat map."""
    matches = [match for run in drawing.runs for name in run.metrics if (match := _SPECTRUM.fullmatch(name))]
    parts = sorted({match[1] for match in matches})
    known = dict(_SPECTRA)
    lines = scalar_charts(
        drawing,
        (
            Scalars(
                f"spectrum_{file_name(name)}",
                known.get(name, name),
                name,
                {part: f"pdyn/spectrum/{part}/{name}" for part in parts},
                "Mean over layers.",
                logarithmic=False,
            )
            for name in dict.fromkeys([*known, *sorted(match[2] for match in matches)])
        ),
    )
    found = []
    for run, by_part in quantities:
        for part, by_name in by_part.items():
            if part not in PATHWAYS and not _HEAD.fullmatch(part):  # a head is not a row of its own
                for name, quantity in by_name.items():
                    found.append((run, part, name, known.get(name, name), HeatMap.of(quantity)))
    return (*lines, *_heat_maps(drawing, found))


def _heat_maps(drawing: Drawing, found: Sequence[tuple[RecordedRun, str, str, str, HeatMap]]) -> tuple[Chart, ...]:
    cells = _CELLS_OF_A_REPORT // max(len(found), 1)
    fewest, most = _COLUMNS_OF_A_HEAT_MAP
    drawn = []
    bounds: dict[tuple[str, str], list[float]] = {}
    for run, part, name, title, wanted in found:
        columns = min(max(cells // max(len(wanted.layers), 1), fewest), most)
        steps = drawing.evenly(wanted.steps, columns)
        values = wanted.values(steps)
        if np.isfinite(values).any():  # a ratio may be of what never stands side by side
            drawn.append((run, part, name, title, wanted, steps, values))
            bounds.setdefault((part, name), []).extend(vega.positive_bounds(values[np.isfinite(values)].tolist()) or ())
    charts = []
    for run, part, name, title, wanted, steps, values in drawn:
        same = bounds[part, name]  # of all runs: maps that stand side by side have the same colours
        spec = vega.heat_map(
            dict(zip(wanted.layers, values.tolist(), strict=True)),
            run=run.name,
            steps=steps,
            value_title=title.lower(),
            labels=short_labels(wanted.layers),
            bounds=(min(same), max(same)) if same else None,
        )
        key = "-".join(["layers", file_name(part), file_name(name), f"run{drawing.runs.index(run)}"])
        note = f"{part}; {len(wanted.layers)} layers"
        if wanted.left_out:
            note += f", {wanted.left_out:,} more are left out"
        partial = [step for step in steps if step in run.partial_records] if part in PATHWAYS else []
        if partial:
            note += f"; the column of step {partial[-1]:,} covers {run.partial_records[partial[-1]]:,} steps only"
        charts.append(Chart(key, title, note, spec, run=run.name, part=part))
    return tuple(charts)
