"""`RememberingCallback`: a callback with an interval's state that a resumed run continues."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_pdyn.callbacks.base import PdynCallback
from hf_pdyn.callbacks.memory import memory_of
from hf_pdyn.common.numbers import is_count
from hf_pdyn.integrations.accelerate import watch_clipping
from hf_pdyn.integrations.transformers import add_to_log, is_training_log, watch_mixed_mesh_clipping


class RememberingCallback(PdynCallback, ABC):
    """A callback with an interval's state that a resumed run continues.

    The state stands in `TrainerState.stateful_callbacks["pdyn"]`, hence in trainer_state.json: it is there
    with the Trainer's default flags, where ExportableState is only restored on request
    (`restore_callback_states_from_checkpoint`).
    """

    memory_name: str
    without_memory: str
    """What starts anew in a run resumed from a checkpoint without this callback's memory, as a sentence's subject."""
    remembers = True
    """Whether there is anything to remember, with the settings of this instance."""

    gave_up = False
    _remembered_at: int | None = None
    """The step whose checkpoint has this callback's state."""
    _said_it_is_lost = False

    @abstractmethod
    def stop_measuring(self) -> None:
        """Measure nothing from here on: a failure, or the end of the training."""

    @abstractmethod
    def remember(self) -> dict[str, Any] | None:
        """JSON-able state; may wait for the device, so it is called when a checkpoint is written."""

    @abstractmethod
    def recall(self, memory: object) -> None:
        """Continue from what `remember` returned and the checkpoint's step; ValueError for anything else."""

    @abstractmethod
    def metrics(self, state: TrainerState) -> dict[str, float] | None:
        """What to add to the coming training log record, if anything; starts the next interval."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *event: Any, **kwargs: Any) -> None:
        watch_clipping()
        watch_mixed_mesh_clipping()
        super().on_train_begin(args, state, *event, **kwargs)

    def take_up(self, state: TrainerState) -> None:
        memory, step = memory_of(state), state.global_step
        if not self.remembers:
            return
        if self.memory_name not in memory:
            if step > 0:
                warnings.warn(
                    f"The checkpoint of step {step} has no {self.memory_name} state: it was written without "
                    f"{type(self).__name__}. {self.without_memory} anew at this step.",
                    stacklevel=2,
                )
            return
        remembered = memory[self.memory_name]
        written_at = remembered.get("step", step) if isinstance(remembered, dict) else step
        if is_count(written_at) and written_at != step:
            # The Trainer carries the state of callbacks that were left out of a run through its checkpoints.
            warnings.warn(
                f"The checkpoint's {self.memory_name} state is of step {written_at}, the "
                f"checkpoint of step {step}: the run between was without. Starting it anew.",
                stacklevel=2,
            )
            return
        self.recall(remembered)

    def say_what_starts_anew(self, error: ValueError) -> None:
        """Warn that measuring goes on without what the checkpoint remembers."""
        warnings.warn(f"{error} {self.without_memory} anew at this step.", stacklevel=2)

    def before_checkpoint(self, state: TrainerState) -> None:
        """Put the state of this step where the checkpoint that is about to be written has it."""
        super().before_checkpoint(state)
        self._remembered_at = state.global_step
        remembered = self.remember()
        if remembered is not None:
            memory_of(state)[self.memory_name] = {"step": state.global_step, **remembered}

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.remembers and self._remembered_at != state.global_step and not self._said_it_is_lost:
            self._said_it_is_lost = True
            warnings.warn(
                f"The checkpoint of step {state.global_step} has no {self.memory_name} state: it was written without "
                f"Trainer._save_checkpoint. A run resumed from it starts {type(self).__name__} anew. Let the Trainer's "
                "subclass call super()._save_checkpoint.",
                stacklevel=2,
            )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is not None and is_training_log(logs):
            finite = {name: value for name, value in (self.metrics(state) or {}).items() if math.isfinite(value)}
            add_to_log(logs, state, finite)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        super().on_train_end(args, state, control, **kwargs)
        self.stop_measuring()
