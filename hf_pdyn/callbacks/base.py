"""What our callbacks share: the live optimizer, their place before the reporters, and a memory in checkpoints."""

from __future__ import annotations

import math
import re
import warnings
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from hf_pdyn.callbacks.console import short_record
from hf_pdyn.callbacks.memory import INITIAL, check_memory, memory_of
from hf_pdyn.callbacks.model_card import describe_in_model_card
from hf_pdyn.callbacks.row_buffer import RowBuffer
from hf_pdyn.callbacks.run_json_writer import RunJsonWriter
from hf_pdyn.integrations.accelerate import unwrap_optimizer
from hf_pdyn.integrations.deepspeed import check_not_replaced, declare_partitions
from hf_pdyn.integrations.transformers import (
    all_callbacks,
    check_optim_args,
    make_checkpoints_resumable,
    place_before_reporters,
    processes_train_apart,
    run_directory,
    running_trainer,
    shorten_console,
)
from hf_pdyn.optim.padam import Padam
from hf_pdyn.policy.schedules import Moment
from hf_pdyn.run_dir import run_json
from hf_pdyn.tensors.sharding import held

PINNED_BY_CALLBACK = "callback"
"""In a group's FIELD_pinned: a callback owns the field for this training. True is optim_args, which own it for good."""

_CLAIMS = "_pdyn_claims"
_WRITTEN = "_pdyn_written"
"""An optimizer's attribute: the fields of its groups that callbacks have claimed since it began a training."""


@dataclass(frozen=True)
class TrainingRun:
    """One call of `Trainer.train`: its optimizer (wrapped as it is stepped), its model and its length.

    steps_per_epoch: None where the dataset has no length.
    """

    optimizer: Optimizer
    model: nn.Module
    total_steps: int
    steps_per_epoch: int | None
    lr_scheduler: object = None

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The parameter groups as they are now: wrappers replace them, so they are never kept."""
        return self.optimizer.param_groups

    @property
    def device(self) -> torch.device:
        """Where the optimizer's parameters are; the model's, where nothing tells what it steps."""
        stepped = (param for params in held(unwrap_optimizer(self.optimizer)) for param in params)
        return next(chain(stepped, self.model.parameters())).device

    def step_of(self, moment: Moment) -> int:
        """The number of optimizer steps done when `moment` comes."""
        return moment.resolve(total_steps=self.total_steps, steps_per_epoch=self.steps_per_epoch)

    def logging_interval(self, args: TrainingArguments, state: TrainerState) -> int:
        """Optimizer steps from one training log record to the next."""
        if args.logging_strategy == IntervalStrategy.NO:
            return max(self.total_steps, 1)  # the closing record alone
        if args.logging_strategy == IntervalStrategy.EPOCH:
            return self.steps_per_epoch or 1  # without a length, any step may be an epoch's last
        return max(int(state.logging_steps), 1)

    def ends_epoch(self, step: int) -> bool:
        """Whether that step is the last of its epoch; False where the dataset has no length.

        What is due then is done at that step rather than in on_epoch_end, which a run resumed from it does not get.
        """
        return self.steps_per_epoch is not None and step % self.steps_per_epoch == 0


class PdynCallback(TrainerCallback):
    """Base of our callbacks. A subclass overrides `begin` and the Trainer events it needs.

    One instance serves any number of `train()` calls, trials and resumed runs: everything that belongs
    to one of them is set in `begin`.

    Args:
        trainer: the Trainer that will deliver the events, as TRL's callbacks take it; None: found on the stack.
    """

    run: TrainingRun
    writes: str | None = None
    """The field of the groups that it writes, if any."""
    row_buffer: RowBuffer | None = None
    """Where its rows go, if it has any; they are in files before every checkpoint, and at the end of an epoch."""
    _run_json_writer: RunJsonWriter | None = None
    """The last of our callbacks to begin a training has it, for all of them."""
    _training: TrainerState | None = None
    """The state of the training that it has begun; each training has its own."""
    # Not under its argument's name: it is no setting for run.json.
    _trainer: Any | None = None

    def __init__(self, *, trainer: Any | None = None) -> None:
        self._trainer = trainer

    def running_trainer(self) -> Any | None:
        """The Trainer that delivers this event; None where something else does."""
        return running_trainer(self._trainer)

    def begin(self, args: TrainingArguments, state: TrainerState) -> None:
        """Check the options against the run and reset; ValueError before the first step."""

    def take_up(self, state: TrainerState) -> None:
        """Go on from what the checkpoint of a resumed run remembers; ValueError where that cannot be."""

    def all_have_begun(self, state: TrainerState) -> None:
        """Check what depends on our other callbacks, now that all have begun; ValueError before the first step."""

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        check_optim_args(args)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: Optimizer | None = None,
        train_dataloader: Any = None,
        lr_scheduler: object = None,
        **kwargs: Any,
    ) -> None:
        # setfit hands out its own arguments and model, and those of the Trainer below it by these names.
        args, model = kwargs.get("st_args", args), kwargs.get("st_model", model)
        assert model is not None and optimizer is not None
        self._check_trainer()
        place_before_reporters(PdynCallback, self._trainer)
        if self._training is state:  # the same callback, added twice
            return
        self._training = state
        make_checkpoints_resumable()
        steps_per_epoch = _steps_per_epoch(train_dataloader, args)
        self.run = TrainingRun(optimizer, model, state.max_steps, steps_per_epoch, lr_scheduler)
        self._run_json_writer = None
        if _CLAIMS not in vars(state):  # the first of our callbacks
            setattr(state, _CLAIMS, {})
            check_not_replaced(optimizer)
            declare_partitions(optimizer)
            shorten_console(short_record, self._trainer)
            _unpin(self.run.groups)
            if state.is_world_process_zero:
                _say_what_nobody_reads(args, unwrap_optimizer(optimizer))
            if state.global_step == 0:
                _start_over(unwrap_optimizer(optimizer), self.run.groups)
            check_memory(state, self.run.groups)
            if processes_train_apart(self._trainer):
                warnings.warn(
                    "The processes of this launch do not average their gradients: each trains a model of its own. The "
                    "Trainer does not wrap the model where evaluate() was called before train(); use eval_on_start "
                    "instead.",
                    stacklevel=2,
                )
            if state.global_step > 0:
                _check_resumed_optimizer(unwrap_optimizer(optimizer), state.global_step)
                self._say_what_stays(state)
        run_dir = run_directory(args, self._trainer)
        if self.row_buffer is not None:
            self.row_buffer.begin(run_dir, state)
        self.begin(args, state)
        self.take_up(state)
        ours = [callback for callback in all_callbacks(self, self._trainer) if isinstance(callback, PdynCallback)]
        if ours[-1] is self:
            for callback in ours:
                callback.all_have_begun(state)
            # None has refused: only now is what an earlier run left replaced.
            self._run_json_writer = RunJsonWriter()
            memory = memory_of(state)
            memory[run_json.ID] = self._run_json_writer.begin(
                run_dir, args, state, model, optimizer, ours, memory.get(run_json.ID)
            )
            for callback in ours:
                if callback.row_buffer is not None:
                    callback.row_buffer.belong_to(memory[run_json.ID])
            describe_in_model_card(self._trainer, args, state, ours)

    def _check_trainer(self) -> None:
        if self._trainer is not None and self not in self._trainer.callback_handler.callbacks:
            name = type(self).__name__
            raise ValueError(
                f"{name} was built with trainer={type(self._trainer).__name__}(...), which does not have it. Give it "
                "that Trainer by add_callback, or leave trainer out."
            )

    def resolved(self) -> dict[str, Any]:
        """What this training made of settings such as "auto", for run.json."""
        return {}

    def before_checkpoint(self, state: TrainerState) -> None:
        """What must be on the disk before the checkpoint of this step is: called in every process."""
        self._flush()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._flush()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._training = None
        self._flush()
        if self._run_json_writer is not None:
            self._run_json_writer.finish(state)

    def _flush(self) -> None:
        if self.row_buffer is not None:
            self.row_buffer.flush()

    def _say_what_stays(self, state: TrainerState) -> None:
        """Warn of a field that a callback of the checkpoint's run moved and that no callback of this run writes."""
        written = {getattr(callback, "writes", None) for callback in all_callbacks(self, self._trainer)}
        for key, initial in memory_of(state).items():
            field = key.removeprefix(INITIAL)
            if field == key or field in written:
                continue
            pairs = zip(initial, self.run.groups, strict=True)
            moved = [(old, group[field]) for old, group in pairs if field in group and group[field] != old]
            if moved:
                old, now = moved[0]
                warnings.warn(
                    f"A callback of the run that wrote this checkpoint has moved {field} from {old} to {now}, and it "
                    f"stays there: this run has none that writes it. Add that callback, or a schedule of {field}.",
                    stacklevel=3,
                )

    def claim(self, state: TrainerState, field: str, label: str | None = None, *, restore: bool = True) -> None:
        """Be the one callback that writes this field of the groups with this label; ValueError for a second.

        The claims of one `train()` stand beside its state, which is new for each. restore: whether the next `train()`
        begins at the field's initial value.
        """
        claims: dict[tuple[str, str | None], str] = getattr(state, _CLAIMS)
        if (field, label) in claims:
            first, second = claims[field, label], type(self).__name__
            both = f"{first} and {second}" if first != second else f"Two of {first}, of which options may make one,"
            raise ValueError(
                f"{both} would both write {field}{f' of {label}' if label else ''}. Drop one of them, or give them "
                "different labels."
            )
        claims[field, label] = type(self).__name__
        if restore:
            vars(unwrap_optimizer(self.run.optimizer)).setdefault(_WRITTEN, set()).add(field)

    def keep_initial(self, state: TrainerState, field: str) -> None:
        """Let every group that has `field` have `initial_<field>`, as torch's schedulers keep `initial_lr`.

        It is the value before any callback wrote it, also in a resumed run: it stands in trainer_state.json as well,
        since loading an optimizer under FSDP2 drops every key that the new run's groups do not have yet (torch 2.13).
        """
        key, groups, memory = f"{INITIAL}{field}", self.run.groups, memory_of(state)
        if key not in memory:
            began = state.global_step > 0  # before, the value of now is the initial one
            memory[key] = [group.get(key if began and key in group else field) for group in groups]
        for group, value in zip(groups, memory[key], strict=True):
            if value is not None:
                group[key] = value


def _say_what_nobody_reads(args: TrainingArguments, optimizer: Optimizer) -> None:
    """Warn of `optim_args` that Padam alone reads, where another optimizer trains: the Trainer drops them silently."""
    items = [item.strip() for item in (getattr(args, "optim_args", None) or "").split(",")]
    ours = [item for item in items if _OF_PADAM.match(item)]
    if ours and not isinstance(optimizer, Padam):
        warnings.warn(
            f"optim_args has {', '.join(ours)}, which only --optim padam reads, and this run trains with "
            f"{type(optimizer).__name__}. Set --optim padam, or drop them.",
            stacklevel=3,
        )


_OF_PADAM = re.compile(
    r"((p|update_scale|bias_correction|state_dtype|weight_correction) *=)|((p|weight_decay|lr_mult|label)\.)"
)


def _check_resumed_optimizer(optimizer: Optimizer, step: int) -> None:
    if isinstance(optimizer, Padam):
        if not optimizer.state:
            warnings.warn(
                f"Padam resumes at step {step} without its state: the checkpoint has none (save_only_model=True, or "
                "its writing was interrupted). Moments, bias correction and the learning rate's schedule start anew, p "
                "and weight decay are the command line's. Resume from a checkpoint with optimizer.pt, or start a new "
                "run from this one's weights.",
                stacklevel=3,
            )
    elif any("update_scale" in group for group in optimizer.param_groups):
        raise ValueError(
            f"The checkpoint's optimizer state was written by Padam, this run trains with {type(optimizer).__name__}, "
            f"which has taken over Padam's settings, eps={optimizer.param_groups[0]['eps']:g} among them. Resume "
            "with --optim padam (at p=0.5 it is AdamW), or start a new run from the checkpoint's weights."
        )


def _unpin(groups: list[dict[str, Any]]) -> None:
    """Give back what callbacks of an earlier training owned: its optimizer, or its checkpoint, says so still."""
    for group in groups:
        for name, value in group.items():
            if name.endswith("_pinned") and value == PINNED_BY_CALLBACK:
                group[name] = False


def _start_over(optimizer: Optimizer, groups: list[dict[str, Any]]) -> None:
    """Give the fields that callbacks of an earlier training wrote their initial values back.

    A second `train()` has the first one's optimizer, and so has one that `auto_find_batch_size` begins again.
    """
    for field in vars(optimizer).pop(_WRITTEN, ()):
        for group in groups:
            if f"{INITIAL}{field}" in group:
                group[field] = group[f"{INITIAL}{field}"]


def _steps_per_epoch(train_dataloader: Any, args: TrainingArguments) -> int | None:
    try:
        batches = len(train_dataloader)
    except TypeError:  # an IterableDataset without a length
        return None
    return max(1, math.ceil(batches / args.gradient_accumulation_steps))
