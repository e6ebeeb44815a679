"""The tables of a report: final values, and configurations with their differences."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_pdyn.report.recorded_run import STEPS, RecordedRun, by_content, printable

NOTHING = "-"


@dataclass(frozen=True)
class Column:
    """A column of final values: its heading, and the value of a run, None where it has none."""

    heading: str
    values: tuple[float | None, ...]

    def texts(self) -> list[str]:
        """Return the values as text."""
        return [
            NOTHING if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
            for value in self.values
        ]


_FINAL_VALUES = {
    "train loss": "loss",
    "eval loss": "eval_loss",
    "p": "pdyn/p",
    "D_w": "pdyn/D_w",
    "D_b": "pdyn/D_b",
    "G_w/G_b": "pdyn/G_w_over_G_b",
    "update w/b": "pdyn/update_ratio",
    "weight decay": "pdyn/weight_decay",
    "a_t": "pdyn/a_t",
    "skipped": "pdyn/skipped_steps",
    "non-finite": "pdyn/nonfinite_steps",
    "seconds": "train_runtime",
}


def final_values(runs: Sequence[RecordedRun]) -> list[Column]:
    """The last value of what any run has, of means that of the last complete record; after eval loss its minimum."""
    columns = [Column("steps", tuple(run.step for run in runs))]
    for heading, metric in _FINAL_VALUES.items():
        columns.append(Column(heading, tuple(run.last(metric) for run in runs)))
        if metric == "eval_loss":
            best = tuple(min(run.series(metric).values, default=None) for run in runs)
            columns.append(Column("best eval", best))
    return [column for column in columns if any(map(_says_something(column), column.values))]


def notes(runs: Sequence[RecordedRun]) -> list[str]:
    """Sentences on the final values: which record means are of, and what implicit bias and weight decay came to."""
    return [sentence for note in (_partial_note, _bias_note, _shutoff_note) for sentence in _for_runs(runs, note)]


def _for_runs(runs: Sequence[RecordedRun], note: Callable[[RecordedRun], str | None]) -> list[str]:
    """Each sentence once, with the names of its runs where there are several."""
    sentences: dict[str, list[str]] = {}
    for run in runs:
        sentence = note(run)
        if sentence is not None:
            sentences.setdefault(sentence, []).append(run.name)
    if len(runs) == 1:
        return [f"{sentence}." for sentence in sentences]
    return [f"{sentence} ({', '.join(names)})." for sentence, names in sentences.items()]


def _partial_note(run: RecordedRun) -> str | None:
    """Which record final means are of, for a run whose last record covers part of a logging interval."""
    covered = run.series(STEPS).steps
    complete = [step for step in covered if step not in run.partial_records]
    if not complete or covered[-1] <= complete[-1]:
        return None
    steps = run.partial_records[covered[-1]]
    return (
        f"Norms, their ratios and shares are means of the record at step {complete[-1]:,}; the last one, at step "
        f"{covered[-1]:,}, covers {steps:,} step{'s' if steps > 1 else ''} only"
    )


def _bias_note(run: RecordedRun) -> str | None:
    """The sign of the implicit bias in words."""
    whose = {"weights'": "pdyn/implicit_bias/weight", "bias-like parameters'": "pdyn/implicit_bias/bias_like"}
    coefficients = {name: run.last(metric) for name, metric in whose.items()}
    acts = {name: "penalises" if value > 0 else "protects" for name, value in coefficients.items() if value}
    if not acts:
        return None
    if len(set(acts.values())) == 1:
        said = f"{next(iter(acts.values()))} the perturbed norm N_p of the {' and the '.join(acts)} gradient"
    else:
        (name, act), (other, opposite) = acts.items()
        said = f"{act} the perturbed norm N_p of the {name} gradient and {opposite} that of the {other}"
    return f"In the end, the implicit bias {said}"


def _shutoff_note(run: RecordedRun) -> str | None:
    """When and why weight decay was switched off by a target."""
    step = run.last("pdyn/wd_off/step")
    found = [name for name in run.metrics if name.startswith("pdyn/wd_off/") and name != "pdyn/wd_off/step"]
    if step is None or not found:
        return None
    quantity, value = found[-1].removeprefix("pdyn/wd_off/"), run.last(found[-1])
    return f"Weight decay was switched off at step {step:,.0f}, when {quantity} had come down to {value:.4g}"


def _says_something(column: Column) -> Callable[[float | None], bool]:
    """Whether a value of it is worth a column: of a count of what went wrong, only one that is not 0."""
    return bool if column.heading in ("skipped", "non-finite") else lambda value: value is not None


@dataclass(frozen=True)
class Setting:
    """One setting of every run. values: as text, None for a run that has it not."""

    group: str
    name: str
    values: tuple[str | None, ...]
    differs: bool

    def texts(self) -> list[str]:
        """Return the values as text."""
        return [NOTHING if value is None else value for value in self.values]


_GROUPS = {
    "callbacks": "hf_pdyn",
    "optimizer": "hf_pdyn",
    "model": "Model",
    "device": "Launch",
    "processes": "Launch",
    "max_steps": "Launch",
    "versions": "Versions",
    "training_arguments": "TrainingArguments",
}
_OF_A_DIRECTORY = ("output_dir", "logging_dir", "run_name")
"""Settings that differ between any two runs and mean nothing."""


def configuration(runs: Sequence[RecordedRun]) -> list[Setting]:
    """Every setting of the last start of these runs, by group; those of runs without a configuration are None."""
    flat = [_flat_start(run.starts[-1]) if run.starts else {} for run in runs]
    known = [settings for run, settings in zip(runs, flat, strict=True) if run.starts]
    keys = sorted(
        {key: None for settings in flat for key in settings}, key=lambda key: list(_GROUPS.values()).index(key[0])
    )
    settings = []
    for key in keys:
        differs = len({values.get(key) for values in known}) > 1 and key[1] not in _OF_A_DIRECTORY
        settings.append(Setting(*key, tuple(values.get(key) for values in flat), differs))
    return settings


def _flat_start(start: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}
    for key, group in _GROUPS.items():
        value = start.get(key)
        if key == "callbacks":
            value = _by_name(value)
        prefix = "" if isinstance(value, Mapping) else key
        for name, text in _flat(prefix, value):
            found[group, printable(name)] = printable(text)
    return found


def _by_name(callbacks: Any) -> dict[str, Any]:
    """A list of callbacks as a mapping; several of one class are numbered by their settings, in whatever order."""
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for entry in callbacks if isinstance(callbacks, list) else []:
        if isinstance(entry, Mapping):
            grouped.setdefault(str(entry.get("name", "?")), []).append(entry)
    return {
        f"{name} #{number}" if number > 1 else name: {k: v for k, v in entry.items() if k != "name"} or "on"
        for name, entries in grouped.items()
        for number, entry in enumerate(sorted(entries, key=by_content), start=1)
    }


def _flat(prefix: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        parts = [_flat(f"{prefix}.{key}" if prefix else str(key), item) for key, item in value.items()]
        return [pair for part in parts for pair in part]
    if value is None or value == {}:
        return []
    return [(prefix, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))]
