"""The training signal of a new head against that of the pretrained backbone, from a run's rows of layers."""

import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from hf_pdyn.grouping import PATHWAYS

PARTS = ("head", "backbone")
_PERIODS = 4


@dataclass(frozen=True)
class Signal:
    """What reached a part of the model, as one log record has it or as the mean of several.

    gradient_norm: L2 norm of the part's gradient before clipping. From the means over the record's steps of its
        layers' norms, so a little below the mean of the part's norm where these vary.
    relative_update: L2 norm of the update of the part's trained parameters over the L2 norm of these parameters.
    """

    gradient_norm: float
    relative_update: float


def signals_of(rows: Iterable[Mapping[str, Any]], head: Collection[str]) -> dict[int, dict[str, Signal]]:
    """Return the signal of each of PARTS by optimizer step.

    Args:
        rows: of ``hf_pdyn.run_dir.tables.LAYERS``.
        head: the model's children that are its head; every other layer is the backbone.
    """
    squares: dict[int, dict[tuple[str, str], float]] = {}
    for row in rows:
        if row["part"] not in PATHWAYS:  # spectra, which have steps of their own
            continue
        part = PARTS[0] if row["layer"].partition(".")[0] in head else PARTS[1]
        sums = squares.setdefault(row["step"], {})
        sums[part, row["name"]] = sums.get((part, row["name"]), 0.0) + row["value"] ** 2
    signals = {step: {part: _signal(sums, part) for part in PARTS} for step, sums in sorted(squares.items())}
    return {step: {part: s for part, s in found.items() if s is not None} for step, found in signals.items()}


def mean_signals(signals: Iterable[Mapping[str, Signal]]) -> dict[str, Signal]:
    """Return each part's mean; a part that no record has is left out."""
    listed = list(signals)
    means: dict[str, Signal] = {}
    for part in PARTS:
        found = [by_part[part] for by_part in listed if part in by_part]
        if found:
            means[part] = Signal(fmean(s.gradient_norm for s in found), fmean(s.relative_update for s in found))
    return means


def print_signals(console: Console, signals: Mapping[int, Mapping[str, Signal]]) -> None:
    """Print the parts' means in each quarter of the records."""
    table = Table(title="Head and backbone", title_justify="left")
    table.add_column("steps")
    for quantity in ("gradient norm", "update / parameters"):
        for part in PARTS:
            table.add_column(f"{part}:\n{quantity}", justify="right")
    for steps in _periods(list(signals)):
        means = mean_signals(signals[step] for step in steps)
        gradients = [_cell(means[part].gradient_norm if part in means else None) for part in PARTS]
        updates = [_cell(means[part].relative_update if part in means else None) for part in PARTS]
        table.add_row(f"{steps[0]} to {steps[-1]}", *gradients, *updates)
    console.print(table)


def _signal(sums: Mapping[tuple[str, str], float], part: str) -> Signal | None:
    names = [(part, name) for name in ("grad_norm", "update_norm", "param_norm")]
    if any(name not in sums for name in names) or sums[part, "param_norm"] == 0:
        return None
    gradient, update, parameters = (math.sqrt(sums[name]) for name in names)
    return Signal(gradient, update / parameters)


def _periods(steps: Sequence[int]) -> list[Sequence[int]]:
    cuts = [round(len(steps) * i / _PERIODS) for i in range(_PERIODS + 1)]
    return [steps[a:b] for a, b in itertools.pairwise(cuts) if a < b]


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
