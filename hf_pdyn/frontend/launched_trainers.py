"""What a Trainer below the launcher gets."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_pdyn.common.atomic import replacing
from hf_pdyn.common.json_values import finite_or_none
from hf_pdyn.common.numbers import is_int_or_float
from hf_pdyn.frontend.arguments import PdynArguments
from hf_pdyn.frontend.launched import METRICS_FILE
from hf_pdyn.integrations.transformers import resume_from_complete_checkpoints, set_default_callbacks


def prepare(options: dict[str, Any], note: str) -> None:
    """Give every Trainer built from now on the options' callbacks, and make `note` when the first one is built."""
    arguments = PdynArguments(**options)
    kept = os.environ.get(METRICS_FILE)
    keeper = [_KeepsMetrics(Path(kept))] if kept else []
    set_default_callbacks(lambda: [*arguments.callbacks(), *keeper, _NotesItsTrainer(Path(note))])
    resume_from_complete_checkpoints()


class _NotesItsTrainer(TrainerCallback):
    """Tells the launcher that its options have reached a Trainer."""

    def __init__(self, note: Path) -> None:
        self._note = note

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Make the file."""
        with contextlib.suppress(OSError):  # the launcher has ended
            self._note.touch()


class _KeepsMetrics(TrainerCallback):
    """Writes the last value of every number that is logged, after each evaluation and at the end of training.

    One that is infinite or NaN is null.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last: dict[str, Any] = {}

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Take the record in."""
        numbers = {name: value for name, value in (logs or {}).items() if is_int_or_float(value)}
        self._last.update(numbers)
        if state.is_world_process_zero and not {"loss", "learning_rate"} <= numbers.keys():
            with replacing(self._path) as unfinished:
                unfinished.write_text(json.dumps(finite_or_none(self._last)), encoding="utf-8")
