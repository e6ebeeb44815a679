"""`OUTPUT_DIR/pdyn/run.json`: the configuration of a run, and whether it came to its end.

    {"format": 1,
     "run": "5f0c...",
     "starts": [{"time": ..., "step": 0, "versions": {...}, "training_arguments": {...}, "callbacks": [...], ...}],
     "finished": {"time": ..., "step": 300}}

Every resume adds a start, with the configuration it was resumed with. `run` is the run's id, which its checkpoints have
too: a new run in the directory has another, so that what the earlier one left is known. `finished` is null until
training ends by itself, so a run that was killed is told from one that is done. Pure: it knows neither torch nor
transformers.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hf_pdyn.common.atomic import read_regular, replacing, sweep
from hf_pdyn.run_dir.tables import FOLDER

FORMAT = 1
MEMORY = "pdyn"
"""Where in `stateful_callbacks` of a trainer_state.json ours keep what a resumed run needs."""
ID = "run"
"""The key of the run's id there and in run.json; the states and files of earlier versions have none."""
_DEEPEST = 50
"""The deepest nesting that is read: readers walk the JSON by recursion."""
LIBRARIES = ("hf-pdyn", "torch", "transformers", "accelerate", "peft", "deepspeed", "datasets")
"""Packages whose versions make a difference to a run."""
_SECRET = re.compile(r"(^|_)(token|secret|password|passwd|api_?key|credentials?)$", re.IGNORECASE)


def path_of(run_dir: str | Path) -> Path:
    """Return the path of run.json in a run directory."""
    return Path(run_dir) / FOLDER / "run.json"


def read(run_dir: str | Path) -> dict[str, Any] | None:
    """Return the content of run.json; None where there is none. ValueError, with the reason, if it is unreadable."""
    path = path_of(run_dir)
    try:
        found = json.loads(read_regular(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    except (ValueError, RecursionError) as error:  # of JSON, or of its encoding
        raise ValueError(f"no JSON: {error}") from error
    if _is_deeper(found, _DEEPEST):
        raise ValueError(f"it is nested deeper than {_DEEPEST} levels")
    starts = found.get("starts") if isinstance(found, dict) else None
    if not isinstance(starts, list) or not starts or not all(isinstance(start, dict) for start in starts):
        raise ValueError("it has no list of starts")
    if found.get("format") != FORMAT:
        raise ValueError(f"it has format {found.get('format')!r}, this hf_pdyn reads {FORMAT}")
    return found


def write_start(run_dir: str | Path, step: int, start: Mapping[str, Any], run_id: str | None = None) -> str:
    """Note that training begins there, after `step` steps; returns the run's id.

    At step 0 it is a new run, which replaces what an earlier one left; later, one more start of the same, or of the run
    `run_id`, whose checkpoint is resumed: the starts of another are not kept.
    """
    noted = _readable(run_dir) if step > 0 else {}
    known = noted.get(ID)
    ours = str((step > 0 and run_id) or known or uuid.uuid4().hex)
    sweep(path_of(run_dir).parent, "run.json")
    earlier = noted.get("starts", []) if known in (None, ours) else []
    moment = {"time": _now(), "step": step}
    _write(run_dir, {"format": FORMAT, ID: ours, "starts": [*earlier, {**moment, **as_json(start)}], "finished": None})
    return ours


def write_finish(run_dir: str | Path, step: int) -> None:
    """Note that training ended after `step` steps; ValueError where its start was not noted."""
    noted = read(run_dir)
    if noted is None:
        raise ValueError(f"{path_of(run_dir)} is gone")
    _write(run_dir, {**noted, "finished": {"time": _now(), "step": step}})


def id_of(run_dir: str | Path) -> str | None:
    """Return the id of the run that a directory's run.json is of; None where there is none that can be read."""
    found = _readable(run_dir).get(ID)
    return found if isinstance(found, str) else None


def id_in(state: Mapping[str, Any]) -> str | None:
    """The id of the run that wrote a trainer_state.json; None where it has none."""
    callbacks = state.get("stateful_callbacks")
    memory = callbacks.get(MEMORY) if isinstance(callbacks, Mapping) else None
    found = memory.get(ID) if isinstance(memory, Mapping) else None
    return found if isinstance(found, str) else None


def as_json(value: Any) -> Any:
    """`value` as JSON has it, with dataclasses as dicts, other objects as text, and secrets hidden by their name."""
    if isinstance(value, Mapping):
        return {str(key): _hidden(key, item) for key, item in value.items()}
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return str(value)  # of a str Enum, its value
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and type(value).__str__ is object.__str__:
        return as_json({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    if isinstance(value, Iterable) and not isinstance(value, bytes):
        return [as_json(item) for item in value]
    return str(value)


def _readable(run_dir: str | Path) -> dict[str, Any]:
    try:
        return read(run_dir) or {}
    except ValueError:  # nothing to keep
        return {}


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether JSON has more levels than that. Without recursion: its depth may exceed the limit of that too."""
    level = [value]
    for _ in range(levels):
        inner = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)]
        level = [value for values in inner for value in values]
    return bool(level)


def _hidden(key: object, value: Any) -> Any:
    return "(hidden)" if value and _SECRET.search(str(key)) else as_json(value)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _write(run_dir: str | Path, content: Mapping[str, Any]) -> None:
    with replacing(path_of(run_dir)) as unfinished:
        unfinished.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
