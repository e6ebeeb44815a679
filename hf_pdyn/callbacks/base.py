"""What our callbacks share: the live optimizer, their place before the reporters, and a memory in checkpoints."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_pdyn.integrations.accelerate import watch_clipping
from hf_pdyn.integrations.transformers import (
    add_to_log,
    is_training_log,
    place_before_reporters,
    rewrite_saved_state,
    watch_mixed_mesh_clipping,
)
from hf_pdyn.schedules import Moment

_MEMORY_KEY = "pdyn"
_MEMORY_VERSION = 1


@dataclass(frozen=True)
class Run:
    """One call of `Trainer.train`: its optimizer (wrapped as it is stepped), its model and its length.

    steps_per_epoch: None where the dataset has no length.
    """

    optimizer: Optimizer
    model: nn.Module
    total_steps: int
    steps_per_epoch: int | None

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The parameter groups as they are now: wrappers replace them, so they are never kept."""
        return self.optimizer.param_groups

    def step_of(self, moment: Moment) -> int:
        """The number of optimizer steps done when `moment` comes."""
        return moment.resolve(total_steps=self.total_steps, steps_per_epoch=self.steps_per_epoch)


class PdynCallback(TrainerCallback):
    """Base of our callbacks. A subclass overrides `begin` and the Trainer events it needs.

    One instance serves any number of `train()` calls, trials and resumed runs: everything that belongs
    to one of them is set in `begin`.
    """

    run: Run

    def begin(self, args: TrainingArguments, state: TrainerState) -> None:
        """Check the options against the run and reset; ValueError before the first step."""

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: Optimizer | None = None,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        assert model is not None and optimizer is not None
        place_before_reporters(self)
        self.run = Run(optimizer, model, state.max_steps, _steps_per_epoch(train_dataloader, args))
        self.begin(args, state)

    def claim(self, state: TrainerState, field: str, label: str | None = None) -> None:
        """Be the one callback that writes this field of the groups with this label; ValueError for a second.

        The claims of one `train()` stand beside its state, which is new for each.
        """
        claims: dict[tuple[str, str | None], str] = vars(state).setdefault("_pdyn_claims", {})
        if (field, label) in claims:
            raise ValueError(
                f"{claims[field, label]} and {type(self).__name__} would both write {field}"
                f"{f' of {label}' if label else ''}. Drop one of them, or give them different labels."
            )
        claims[field, label] = type(self).__name__


class RememberingCallback(PdynCallback, ABC):
    """A callback with an interval's state that a resumed run continues.

    The state stands in `TrainerState.stateful_callbacks["pdyn"]`, hence in trainer_state.json: it is there
    with the Trainer's default flags, where ExportableState is only restored on request
    (`restore_callback_states_from_checkpoint`).
    """

    memory_name: str

    @abstractmethod
    def give_up(self) -> None:
        """Measure nothing from here on."""

    @abstractmethod
    def remember(self) -> dict[str, Any] | None:
        """JSON-able state; may wait for the device, so it is called when a checkpoint is due."""

    @abstractmethod
    def recall(self, memory: dict[str, Any]) -> None:
        """Continue from what `remember` returned; ValueError where that cannot be."""

    @abstractmethod
    def metrics(self) -> dict[str, float] | None:
        """What to add to the coming training log record, if anything; starts the next interval."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *event: Any, **kwargs: Any) -> None:
        watch_clipping()
        watch_mixed_mesh_clipping()
        super().on_train_begin(args, state, *event, **kwargs)
        memory = state.stateful_callbacks.get(_MEMORY_KEY)
        if not memory or self.memory_name not in memory:
            return
        if memory.get("version") != _MEMORY_VERSION:
            raise ValueError(
                f"The checkpoint's pdyn state has version {memory.get('version')!r}, this hf_pdyn reads "
                f"{_MEMORY_VERSION}. Resume with the hf_pdyn that wrote it."
            )
        if memory[self.memory_name]["step"] != state.global_step:
            # The Trainer carries the state of callbacks that were left out of a run through its checkpoints.
            warnings.warn(
                f"The checkpoint's {self.memory_name} state is of step {memory[self.memory_name]['step']}, the "
                f"checkpoint of step {state.global_step}: the run between was without. Starting it anew.",
                stacklevel=2,
            )
            return
        self.recall(memory[self.memory_name])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # An evaluation may decide to save the best model, after which no event comes in time.
        if control.should_save or control.should_evaluate:
            self._store(state)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._store(state)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Mend a checkpoint that another callback asked for after our `on_step_end`."""
        if self._memory(state).get(self.memory_name, {}).get("step") == state.global_step:
            return
        self._store(state)
        if state.is_world_process_zero:
            rewrite_saved_state(state, args.output_dir)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is not None and is_training_log(logs):
            finite = {name: value for name, value in (self.metrics() or {}).items() if math.isfinite(value)}
            add_to_log(logs, state, finite)
            if self._memory(state).get(self.memory_name, {}).get("step") == state.global_step:
                self._store(state)  # a checkpoint of this step follows, and the interval has ended since

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.give_up()

    def _memory(self, state: TrainerState) -> dict[str, Any]:
        memory: dict[str, Any] = state.stateful_callbacks.setdefault(_MEMORY_KEY, {"version": _MEMORY_VERSION})
        return memory

    def _store(self, state: TrainerState) -> None:
        remembered = self.remember()
        if remembered is not None:
            self._memory(state)[self.memory_name] = {"step": state.global_step, **remembered}


def _steps_per_epoch(train_dataloader: Any, args: TrainingArguments) -> int | None:
    try:
        batches = len(train_dataloader)
    except TypeError:  # an IterableDataset without a length
        return None
    return max(1, math.ceil(batches / args.gradient_accumulation_steps))
