"""Charts over seeds: runs that differ in nothing else are one line, with a band."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from hf_pdyn.report import vega
from hf_pdyn.report.chart import Chart, Drawing
from hf_pdyn.report.recorded_run import RecordedRun
from hf_pdyn.report.summary import configuration
from hf_pdyn.report.theme import Palette
from hf_pdyn.report.thinning import evenly

_SHOWN = {"eval_loss": "Evaluation loss", "loss": "Training loss", "pdyn/update_ratio": "Update balance U_w / U_b"}
_LEGEND = {"title": None, "orient": "bottom", "direction": "vertical", "columns": 1, "symbolOpacity": 1}
_POINTS = 200
_NOT_THE_SETTING = ("seed", "data_seed", "output_dir", "logging_dir", "run_name")


def seed_groups(runs: Sequence[RecordedRun]) -> dict[str, list[RecordedRun]]:
    """Runs by the setting they share, where two at least do that have a seed of their own; named by their first run."""
    settings = configuration(runs)
    groups: dict[tuple[str | None, ...], list[tuple[str | None, RecordedRun]]] = {}
    for i, run in enumerate(runs):
        if run.starts:
            key = tuple(setting.values[i] for setting in settings if setting.name not in _NOT_THE_SETTING)
            seed = next((setting.values[i] for setting in settings if setting.name == "seed"), None)
            groups.setdefault(key, []).append((seed, run))
    several = [members for members in groups.values() if len({seed for seed, _ in members}) > 1]
    return {_name([run.name for _, run in members]): [run for _, run in members] for members in several}


def seed_charts(drawing: Drawing) -> tuple[Chart, ...]:
    """Median, middle half and range over seeds of a few metrics, by setting."""
    groups = seed_groups(drawing.runs)
    charts = []
    for metric, title in _SHOWN.items():
        rows = [row for name, members in groups.items() for row in _rows(name, members, metric)]
        if rows:
            note = "Median over seeds, the middle half as a band, the range as rules; at steps that all seeds have."
            spec = vega.bands(rows, Palette(tuple(groups)), y_title=title.lower(), over="step")
            spec["encoding"]["color"]["legend"] = _LEGEND  # these lines are no runs of the page
            charts.append(Chart(f"seeds-{metric.rpartition('/')[2]}", f"{title} over seeds", note, spec))
    return tuple(charts)


def _rows(name: str, members: Sequence[RecordedRun], metric: str) -> list[dict[str, Any]]:
    by_step = [
        dict(zip(series.steps, series.values, strict=True)) for series in (run.series(metric) for run in members)
    ]
    epochs = dict(zip(members[0].series(metric).steps, members[0].series(metric).epochs, strict=True))
    shared = sorted(set.intersection(*map(set, by_step)))
    rows = []
    for step in evenly(shared, _POINTS):
        values = [own[step] for own in by_step]
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        quantiles = {"q05": min(values), "q25": low, "median": median, "q75": high, "q95": max(values)}
        short = {key: vega.short(value) for key, value in quantiles.items()}
        moment = {"run": name, "step": step, "epoch": epochs[step]}
        rows.append(moment | short | {"mean": vega.short(statistics.fmean(values)), "nonfinite": 0})
    return rows


def _name(names: Sequence[str]) -> str:
    """What the names of a group's runs begin with, and how many they are."""
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    shared = "".join(letters[0] for letters in alike).rstrip("-_=, /") or names[0]
    return f"{shared.removesuffix('-seed')} ({len(names)} seeds)"
