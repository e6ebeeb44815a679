"""Run directories as `RecordedRun`s; what cannot be read is named, and the rest is kept."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa

from hf_pdyn.common.atomic import read_regular
from hf_pdyn.common.numbers import is_finite, is_int_or_float, is_number
from hf_pdyn.report.recorded_run import RecordedRun, by_content, printable, whole_number
from hf_pdyn.run_dir import run_json
from hf_pdyn.run_dir.checkpoints import CHECKPOINT_PREFIX, STATE_FILE
from hf_pdyn.run_dir.tables import ALLOCATION, DECISIONS, FOLDER, LAYERS, SAMPLE_LOSSES, TableKind, read_table


def read_runs(directories: Iterable[str | Path]) -> list[RecordedRun]:
    """The runs in these directories, each once; ValueError for one that no run has written to."""
    paths = [Path(directory) for directory in directories]
    unique = list({path.resolve(): path for path in paths}.values())
    for path in unique:
        _check_run_directory(path)
    return [_read(path, name) for path, name in zip(unique, _names(unique), strict=True)]


def _check_run_directory(path: Path) -> None:
    expected = f"the output_dir of a Trainer, with {STATE_FILE}, checkpoint-N/{STATE_FILE} or {FOLDER}/"
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
    return [path / STATE_FILE, *(child / STATE_FILE for _, child in sorted(checkpoints, reverse=True))]


_CHECKPOINT = re.compile(rf"{CHECKPOINT_PREFIX}(\d+)")


def _names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that are all different."""
    parts = [path.resolve().parts for path in paths]
    for count in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(own[-count:]) or "/" for own in parts]
        if len(set(names)) == len(names):
            break
    return [printable(name) for name in names]


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
    noted = (info or {}).get(run_json.ID)
    run_id = noted if isinstance(noted, str) else None
    state = _read_state(path, run_id, problems)
    history = _usable(state.get("log_history"), problems)
    if not history and not any("read" in problem for problem in problems):
        problems.append(
            f"There are no log records: neither {STATE_FILE} (call trainer.save_state() after training) nor a "
            "checkpoint has any."
        )
    problems += _resumes_with_other_settings(info)
    last_start = (info or {}).get("starts", [{}])[-1]

    def table(kind: TableKind) -> pa.Table:
        found, unreadable = read_table(path, kind, run_id)
        for file, reason in unreadable.items():
            problems.append(f"{file.relative_to(path)} is left out: {reason}")
        return found

    return RecordedRun(
        directory=path,
        name=name,
        history=history,
        step=whole_number(state.get("global_step")),
        max_steps=whole_number(state.get("max_steps")) or whole_number(last_start.get("max_steps")),
        info=info,
        layers=table(LAYERS),
        decisions=table(DECISIONS),
        sample_losses=table(SAMPLE_LOSSES),
        allocation=table(ALLOCATION),
        problems=tuple(map(printable, problems)),
    )


def _read_state(path: Path, run_id: str | None, problems: list[str]) -> dict[str, Any]:
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
    return max(candidates, key=lambda state: whole_number(state.get("global_step")) or 0, default={})


def _json_object(file: Path, run_dir: Path, problems: list[str]) -> dict[str, Any] | None:
    try:
        found = json.loads(read_regular(file))
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
        if not isinstance(record, dict) or whole_number(record.get("step")) is None:
            continue
        epoch = record.get("epoch")
        named = {printable(name): value for name, value in record.items()}
        usable.append({**named, "epoch": epoch if is_number(epoch) else None})
        for key, value in named.items():
            if is_int_or_float(value) and not is_finite(value):
                not_finite.setdefault(key, []).append(record["step"])
    if len(usable) < len(records):
        problems.append(f"{len(records) - len(usable)} of {len(records)} log records have no step and are left out.")
    for key, steps in not_finite.items():
        problems.append(
            f"{key} is not finite in {len(steps)} of {len(usable)} log records, from step {min(steps):,} on; those are "
            "left out."
        )
    return tuple(usable)


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


_CHANGE_WITH_A_RESUME = ("resume_from_checkpoint", "logging_dir", "run_name")
