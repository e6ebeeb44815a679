"""`RecordedRun`: what a run directory holds, as plain data, with what could not be read said in words."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeGuard

import pyarrow as pa

from hf_pdyn.common.json_values import finite_or_none
from hf_pdyn.policy.algorithm1 import BRANCHES
from hf_pdyn.run_dir import run_json
from hf_pdyn.run_dir.tables import DECISIONS, FOLDER, LAYERS, SAMPLE_LOSSES, TableKind, read_table

_STATE = "trainer_state.json"


@dataclass(frozen=True)
class Series:
    """One quantity of one run over its steps. All three have the same length, values are finite, steps rise."""

    steps: tuple[int, ...]
    epochs: tuple[float | None, ...]
    values: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.steps)


@dataclass(frozen=True)
class RecordedRun:
    """One run directory, read as far as it can be.

    name: its folder, with as many parents as make it unique among the runs of a report. history: the Trainer's log
    records, in order. step, max_steps: of the newest state; None where there is none. info: `pdyn/run.json`.
    problems: what is missing, damaged or left out, a sentence each.
    """

    directory: Path
    name: str
    history: tuple[dict[str, Any], ...]
    step: int | None
    max_steps: int | None
    info: dict[str, Any] | None
    layers: pa.Table
    decisions: pa.Table
    sample_losses: pa.Table
    problems: tuple[str, ...]

    def series(self, name: str) -> Series:
        """A number of the log records; of several at one step, the last."""
        return self._all_series.get(name, Series((), (), ()))

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """Names of all numbers in the log records, in the order of their first appearance."""
        return tuple(self._all_series)

    def last(self, name: str) -> float | None:
        """The last value of a number in the log records."""
        values = self.series(name).values
        return values[-1] if values else None

    @cached_property
    def decided(self) -> tuple[dict[str, Any], ...]:
        """The decisions with a step, a p and a branch that is one; numbers that are not finite are None."""
        rows = [{key: finite_or_none(value) for key, value in row.items()} for row in self.decisions.to_pylist()]
        return tuple(
            row for row in rows if row["step"] is not None and row["p"] is not None and row["branch"] in BRANCHES
        )

    @cached_property
    def starts(self) -> tuple[dict[str, Any], ...]:
        """The configurations it was started and resumed with, oldest first."""
        return tuple(self.info["starts"]) if self.info else ()

    @cached_property
    def finished(self) -> bool | None:
        """Whether training came to its end; None where nothing tells."""
        if self.info is not None:
            return isinstance(self.info.get("finished"), dict)
        if self.step is None or not self.max_steps:
            return None
        return self.step >= self.max_steps

    @cached_property
    def status(self) -> str:
        """How far it came, in words."""
        finish = (self.info or {}).get("finished")
        step = _whole(finish.get("step")) if isinstance(finish, dict) else self.step
        where = (
            "no step known"
            if step is None
            else f"step {step:,}" + (f" of {self.max_steps:,}" if self.max_steps else "")
        )
        if self.finished is None:
            return f"end unknown ({where})"
        return f"finished ({where})" if self.finished else f"not finished ({where})"

    @cached_property
    def log(self) -> tuple[str, ...]:
        """When it was started, resumed and finished, a line each."""
        lines = [f"{'resumed' if i else 'started'} {_moment(start)}" for i, start in enumerate(self.starts)]
        finish = (self.info or {}).get("finished")
        return (*lines, f"finished {_moment(finish)}") if isinstance(finish, dict) else tuple(lines)

    @cached_property
    def _all_series(self) -> dict[str, Series]:
        found: dict[str, dict[int, tuple[float | None, float]]] = {}
        for record in self.history:
            for name, value in record.items():
                if name not in ("step", "epoch") and is_number(value) and _is_finite(value):
                    step, epoch = _taken_at(name, record)
                    found.setdefault(name, {})[step] = (epoch, float(value))
        series = {}
        for name, points in found.items():
            steps = sorted(points)
            series[name] = Series(
                tuple(steps), tuple(points[step][0] for step in steps), tuple(points[step][1] for step in steps)
            )
        return series


def _taken_at(name: str, record: dict[str, Any]) -> tuple[int, float | None]:
    """The step and the epoch of a number in a log record: spectra wait for the next record, and say since when."""
    measured = _whole(record.get("pdyn/spectrum/step"))
    if name.startswith("pdyn/spectrum/") and measured is not None and measured != record["step"]:
        return measured, None
    return record["step"], record.get("epoch")


def _moment(entry: dict[str, Any]) -> str:
    time = printable(str(entry.get("time", "at an unknown time"))).replace("T", " ").replace("+00:00", " UTC")
    step = _whole(entry.get("step"))
    return f"{time} at step {step:,}" if step else time


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether it is an int or a float; a bool is neither here."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_finite(value: int | float) -> bool:
    """Whether a float can have it: JSON has integers that are larger."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def read_runs(directories: Iterable[str | Path]) -> list[RecordedRun]:
    """The runs in these directories, each once; ValueError for one that no run has written to."""
    paths = [Path(directory) for directory in directories]
    unique = list({path.resolve(): path for path in paths}.values())
    for path in unique:
        _check_run_directory(path)
    return [_read(path, name) for path, name in zip(unique, _names(unique), strict=True)]


def _check_run_directory(path: Path) -> None:
    expected = f"the output_dir of a Trainer, with {_STATE}, checkpoint-N/{_STATE} or {FOLDER}/"
    try:
        if not path.is_dir():
            raise ValueError(f"{path} is {'no directory' if path.exists() else 'missing'}: name {expected}.")
        if not (any(file.exists() for file in _state_files(path)) or (path / FOLDER).is_dir()):
            raise ValueError(f"{path} is no run directory: name {expected}.")
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): name {expected}.") from error


def _state_files(path: Path) -> list[Path]:
    """The run's own state, then those of its checkpoints from the newest on."""
    checkpoints = [(int(match[1]), child) for child in path.iterdir() if (match := _CHECKPOINT.fullmatch(child.name))]
    return [path / _STATE, *(child / _STATE for _, child in sorted(checkpoints, reverse=True))]


_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def _names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that are all different."""
    parts = [path.resolve().parts for path in paths]
    for count in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(own[-count:]) or "/" for own in parts]
        if len(set(names)) == len(names):
            break
    return [printable(name) for name in names]


def printable(text: str) -> str:
    """`text` with what no terminal and no page can show replaced: control characters and halves of characters."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _read(path: Path, name: str) -> RecordedRun:
    problems: list[str] = []
    try:
        info = run_json.read(path)
    except ValueError as error:
        info = None
        problems.append(f"{run_json.path_of('')} cannot be read: {error}.")
    else:
        if info is None:
            problems.append(f"There is no {run_json.path_of('')}, so the configuration is not known.")
    state = _read_state(path, (info or {}).get(run_json.ID), problems)
    history = _usable(state.get("log_history"), problems)
    if not history and not any("read" in problem for problem in problems):
        problems.append(
            f"There are no log records: neither {_STATE} (call trainer.save_state() after training) nor a checkpoint "
            "has any."
        )
    problems += _resumes_with_other_settings(info)

    def table(kind: TableKind) -> pa.Table:
        found, unreadable = read_table(path, kind)
        for file, reason in unreadable.items():
            problems.append(f"{file.relative_to(path)} cannot be read and is left out: {reason}")
        return found

    return RecordedRun(
        directory=path,
        name=name,
        history=history,
        step=_whole(state.get("global_step")),
        max_steps=_whole(state.get("max_steps")) or _whole(((info or {}).get("starts") or [{}])[-1].get("max_steps")),
        info=info,
        layers=table(LAYERS),
        decisions=table(DECISIONS),
        sample_losses=table(SAMPLE_LOSSES),
        problems=tuple(map(printable, problems)),
    )


def _read_state(path: Path, run_id: object, problems: list[str]) -> dict[str, Any]:
    """The state that came farthest: the run's own, or its newest checkpoint's if it was killed after a resume.

    run_id: the run's, where it is known. A state with another is what an earlier run left in the directory.
    """
    candidates, foreign = [], []
    for file in _state_files(path):
        state = _json_object(file, path, problems)
        if state is None:
            continue
        if run_id and run_json.id_in(state) not in (None, run_id):
            foreign.append(str(file.relative_to(path)))
            continue
        candidates.append(state)
        if file.parent != path:  # older checkpoints know less
            break
    if foreign:
        problems.append(f"Another run in this directory left what is not shown here: {', '.join(foreign)}.")
    return max(candidates, key=lambda state: _whole(state.get("global_step")) or 0, default={})


def _json_object(file: Path, run_dir: Path, problems: list[str]) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it holds no object")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{file.relative_to(run_dir)} cannot be read: {str(error)[:200]}.")
        return None
    return found


def _usable(history: object, problems: list[str]) -> tuple[dict[str, Any], ...]:
    """The records that have a step; what is not finite is named once, with the first step where that was so."""
    records = history if isinstance(history, list) else []
    usable = []
    not_finite: dict[str, list[int]] = {}
    for record in records:
        if not isinstance(record, dict) or _whole(record.get("step")) is None:
            continue
        epoch = record.get("epoch")
        usable.append({**record, "epoch": epoch if is_number(epoch) and _is_finite(epoch) else None})
        for key, value in record.items():
            if is_number(value) and not _is_finite(value):
                not_finite.setdefault(key, []).append(record["step"])
    if len(usable) < len(records):
        problems.append(f"{len(records) - len(usable)} of {len(records)} log records have no step and are left out.")
    for key, steps in not_finite.items():
        problems.append(
            f"{key} is not finite in {len(steps)} of {len(usable)} log records, from step {min(steps):,} on; those are "
            "left out."
        )
    return tuple(usable)


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 else None


def _resumes_with_other_settings(info: dict[str, Any] | None) -> list[str]:
    found = []
    starts = info["starts"] if info else []
    for before, after in pairwise(starts):
        old, new = before.get("training_arguments"), after.get("training_arguments")
        if isinstance(old, dict) and isinstance(new, dict):
            changed = [key for key in new if new[key] != old.get(key) and key not in _CHANGE_WITH_A_RESUME]
            if _in_any_order(before.get("callbacks")) != _in_any_order(after.get("callbacks")):
                changed.append("callbacks")
            if changed:
                found.append(f"It was resumed at step {after.get('step')} with other settings: {', '.join(changed)}.")
    return found


def _in_any_order(callbacks: object) -> object:
    return sorted(map(by_content, callbacks)) if isinstance(callbacks, list) else callbacks


def by_content(value: object) -> str:
    """A key by which JSON is sorted."""
    return json.dumps(value, sort_keys=True)


_CHANGE_WITH_A_RESUME = ("resume_from_checkpoint", "logging_dir", "run_name")
