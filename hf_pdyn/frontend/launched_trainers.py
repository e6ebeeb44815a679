"""What a Trainer below the launcher gets."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_pdyn.frontend.arguments import PdynArguments
from hf_pdyn.integrations.transformers import resume_from_complete_checkpoints, set_default_callbacks


def prepare(options: dict[str, Any], note: str) -> None:
    """Give every Trainer built from now on the options' callbacks, and make `note` when the first one is built."""
    arguments = PdynArguments(**options)
    set_default_callbacks(lambda: [*arguments.callbacks(), _NotesItsTrainer(Path(note))])
    resume_from_complete_checkpoints()


class _NotesItsTrainer(TrainerCallback):
    """Tells the launcher that its options have reached a Trainer."""

    def __init__(self, note: Path) -> None:
        self._note = note

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Make the file."""
        with contextlib.suppress(OSError):  # the launcher has ended
            self._note.touch()
