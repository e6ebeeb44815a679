"""Charts of the losses of single samples."""

from __future__ import annotations

from typing import Any

from hf_pdyn.report import vega
from hf_pdyn.report.chart import Chart, Drawing, file_name
from hf_pdyn.report.sample_losses import HardSamples, distribution, losses_by_epoch, not_drawn, overlap

_EPOCHS_OF_A_CHART = 60


def sample_charts(drawing: Drawing) -> tuple[Chart, ...]:
    """Quantiles of the losses of a split over epochs; and how far runs agree on its hardest tenth after the last."""
    rows: dict[str, list[dict[str, Any]]] = {}
    last: dict[str, dict[str, HardSamples]] = {}
    for run in drawing.runs:
        for split, by_step in losses_by_epoch(run.sample_losses).items():
            for step in drawing.evenly(list(by_step), _EPOCHS_OF_A_CHART):
                moment = {"run": run.name, "step": step, "epoch": by_step[step].epoch}
                rows.setdefault(split, []).append(moment | distribution(by_step[step].loss))
            last.setdefault(split, {})[run.name] = HardSamples.of(by_step[max(by_step)])
    distributions = [_quantiles(split, rows[split], drawing) for split in sorted(rows)]
    return (*distributions, *(_agreement(split, last[split]) for split in sorted(last) if len(last[split]) > 1))


def _quantiles(split: str, rows: list[dict[str, Any]], drawing: Drawing) -> Chart:
    return Chart(
        f"sample_losses-{file_name(split)}",
        f"Losses of {split} samples",
        f"Median, the middle half as a band, 5 % to 95 % as rules.{not_drawn(rows)}",
        vega.bands(rows, drawing.palette, y_title="loss of a sample"),
    )


def _agreement(split: str, by_run: dict[str, HardSamples]) -> Chart:
    rows = [{"run": one, "other": other, **overlap(by_run[one], by_run[other])} for one in by_run for other in by_run]
    return Chart(
        f"jaccard-{file_name(split)}",
        f"Shared hard samples of {split}",
        "Jaccard index of the hardest tenth after the last epoch. Blank: the runs measured other samples.",
        vega.matrix(rows, list(by_run), value_title="Jaccard index"),
    )
