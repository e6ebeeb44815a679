"""Which charts a report has: from runs to specifications, section by section."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from hf_pdyn.policy.algorithm1 import BRANCHES
from hf_pdyn.report import vega
from hf_pdyn.report.allocation_charts import allocation_charts
from hf_pdyn.report.chart import Chart, Drawing, Section
from hf_pdyn.report.map_charts import layer_charts, quantities_of, spectrum_charts
from hf_pdyn.report.recorded_run import RecordedRun
from hf_pdyn.report.sample_charts import sample_charts
from hf_pdyn.report.scalar_charts import (
    ALLOCATION,
    BALANCE,
    DECAY,
    LEARNING,
    TARGET,
    UPDATES,
    group_charts,
    other_scalar_charts,
    scalar_charts,
)
from hf_pdyn.report.seed_charts import seed_charts


def sections(runs: Sequence[RecordedRun]) -> tuple[list[Section], Drawing]:
    """All sections of a report on these runs, in their order on the page; and what they share."""
    drawing = Drawing(runs)
    quantities = quantities_of(runs)
    found = [
        Section(
            "balance",
            "Exponent and gradient balance",
            "How the signal is split between weights and bias-like parameters, and the exponent p that steers it.",
            scalar_charts(drawing, BALANCE),
            "No gradient norms recorded: add a TelemetryCallback, or --telemetry global.",
        ),
        Section(
            "learning",
            "Learning curves",
            "",
            scalar_charts(drawing, LEARNING),
            "No losses recorded: nothing was logged before the run ended.",
        ),
        *_over_seeds(drawing),
        *_by_group(drawing),
        Section(
            "control",
            "Control of p",
            "",
            (*_decisions(drawing), *scalar_charts(drawing, TARGET)),
            "No decisions recorded: --p_control gradient, or target.",
        ),
        Section(
            "allocation",
            "Allocation curve",
            "What any p would make of the moments that the optimizer had at a step: how large the update would be, "
            "which way it would go, and how weights would share it with bias-like parameters.",
            (*scalar_charts(drawing, ALLOCATION), *allocation_charts(drawing)),
            "No allocation curve recorded: add an AllocationCallback, or --allocation log, to padam or Adam's kin.",
        ),
        Section(
            "updates",
            "Updates and norms",
            "",
            scalar_charts(drawing, UPDATES),
            "No update norms recorded: add a TelemetryCallback, or --telemetry global.",
        ),
        Section(
            "layers",
            "Layers",
            "Colours are logarithmic. Blank is zero, or not recorded.",
            layer_charts(drawing, quantities),
            "No layers recorded: --telemetry layers.",
        ),
        Section(
            "decay",
            "Weight decay",
            "a_t, the decay accumulated so far, is the time variable of time-dependent mirror flows.",
            scalar_charts(drawing, DECAY),
            "No weight decay recorded: add a TelemetryCallback, or --telemetry global.",
        ),
        Section("spectra", "Spectra", "", spectrum_charts(drawing, quantities), "No spectra recorded: --spectra."),
        Section(
            "samples",
            "Samples",
            "",
            sample_charts(drawing),
            "No sample losses recorded: --sample_losses.",
        ),
    ]
    other, left_out = other_scalar_charts(drawing)
    intro = f"The first {len(other)} of {len(other) + left_out} metrics; the others are left out." if left_out else ""
    found.append(Section("other", "Other metrics", intro, other, "Nothing else was logged."))
    return _with_unique_keys(found), drawing


def _with_unique_keys(found: Sequence[Section]) -> list[Section]:
    """Names that differ only in what no file's name should have get a number."""
    used: dict[str, int] = {}

    def numbered(chart: Chart) -> Chart:
        used[chart.key] = used.get(chart.key, 0) + 1
        return chart if used[chart.key] == 1 else dataclasses.replace(chart, key=f"{chart.key}-{used[chart.key]}")

    return [dataclasses.replace(section, charts=tuple(map(numbered, section.charts))) for section in found]


def _over_seeds(drawing: Drawing) -> Iterator[Section]:
    """Only where there are seeds to compare."""
    charts = seed_charts(drawing)
    if charts:
        yield Section("seeds", "Over seeds", "Runs that differ in their seed alone.", charts, "")


def _by_group(drawing: Drawing) -> Iterator[Section]:
    """Only where a run has groups of the user's own."""
    charts, left_out = group_charts(drawing)
    if charts:
        rest = f" The first few groups; {left_out} more are in the table of shares." if left_out else ""
        yield Section("groups", "Named groups", f"Parameter groups of the rules in --groups.{rest}", charts, "")


def _decisions(drawing: Drawing) -> tuple[Chart, ...]:
    rows = [{"run": run.name, **row} for run in drawing.runs for row in run.decided]
    if not rows:
        return ()
    fired = {row["branch"] for row in rows}
    spec = vega.decisions(rows, drawing.palette, [branch for branch in BRANCHES if branch in fired])
    note = (
        "Each mark is a decision of Algorithm 1; its shape is the branch that fired. Triangles point where p went, a "
        "diamond is a rebound of D_b, which lowers p."
    )
    return (Chart("decisions", "Decisions", note, spec),)
