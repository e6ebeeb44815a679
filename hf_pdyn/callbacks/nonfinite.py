"""`NonfiniteCallback`: what Padam does with a step whose gradients hold NaN or infinity."""

from __future__ import annotations

from typing import Any, get_args

from transformers import TrainerState, TrainingArguments

from hf_pdyn.callbacks.base import PdynCallback
from hf_pdyn.common.errors import check_choice
from hf_pdyn.integrations.accelerate import unwrap_optimizer
from hf_pdyn.integrations.deepspeed import want_one_step_for_all_groups, why_unreadable
from hf_pdyn.optim.hyperparameters import Nonfinite
from hf_pdyn.optim.padam import Padam


class NonfiniteCallback(PdynCallback):
    """Sets `Padam.nonfinite` when training begins, also where a checkpoint is resumed; the optimizer keeps it.

    Raises ValueError at train begin where that optimizer cannot have the value.

    Args:
        nonfinite: "skip" leaves out every step in which a gradient holds NaN or infinity, "apply" takes it.
        trainer: see `PdynCallback`.

    Example:
        >>> trainer = Trainer(model, args, train_dataset=data, callbacks=[NonfiniteCallback()])
        >>> result = trainer.train()
        >>> trainer.optimizer.optimizer.nonfinite  # accelerate wraps the optimizer
        'skip'
    """

    def __init__(self, nonfinite: Nonfinite = "skip", *, trainer: Any | None = None) -> None:
        super().__init__(trainer=trainer)
        check_choice("nonfinite", nonfinite, get_args(Nonfinite))
        self.nonfinite: Nonfinite = nonfinite

    def begin(self, args: TrainingArguments, state: TrainerState) -> None:
        optimizer = unwrap_optimizer(self.run.optimizer)
        if not isinstance(optimizer, Padam):
            raise ValueError(
                f"nonfinite says what Padam does with a step, got {type(optimizer).__name__}. Train with "
                "--optim padam, or drop it."
            )
        unreadable = why_unreadable(self.run.optimizer)
        if self.nonfinite == "skip" and unreadable:
            raise ValueError(f'nonfinite="skip" must see all gradients: {unreadable}, or leave nonfinite at apply.')
        want_one_step_for_all_groups(optimizer)  # under ZeRO, whose groups must be skipped together
        self.claim(state, "nonfinite")
        optimizer.nonfinite = self.nonfinite
