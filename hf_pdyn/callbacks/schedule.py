"""`ScheduleCallback`: a number in the optimizer's groups as a function of the step."""

from __future__ import annotations

import warnings
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_pdyn.callbacks.base import PINNED_BY_CALLBACK, PdynCallback
from hf_pdyn.common.errors import did_you_mean
from hf_pdyn.grouping import NAME, select
from hf_pdyn.integrations.accelerate import unwrap_optimizer
from hf_pdyn.policy.limits import check_limits
from hf_pdyn.policy.schedules import Schedule


class ScheduleCallback(PdynCallback):
    """Sets `group[field]` before every step; a resumed run needs nothing but its step number.

    With a label, in that label's groups, which no schedule without a label and no control then
    touches. Without one, p moves in every group that has not its own (`p.LABEL` in optim_args), and
    weight_decay in every group that decays at the start. The learning rate has the Trainer's scheduler.

    Args:
        field: `p`, `weight_decay` or another number in the groups (`eps`, `momentum`, ...).
        schedule: a `Schedule`, its text, such as `"linear:0.45..0.35"`, or a constant.
        label: a pathway or a component, which needs labelled groups (padam, or `build_param_groups`), or the name of
            a group rule; of a rule's groups, weight_decay is for the weights.
        trainer: see `PdynCallback`.

    Example:
        >>> falling = ScheduleCallback("p", "linear:0.5..0.25")
        >>> trainer = Trainer(model, args, train_dataset=data, callbacks=[falling])
        >>> result = trainer.train()
        >>> trainer.optimizer.param_groups[0]["p"]  # of the last of eight steps
        0.28125
    """

    def __init__(
        self, field: str, schedule: Schedule | str | float, label: str | None = None, *, trainer: Any | None = None
    ) -> None:
        super().__init__(trainer=trainer)
        if field in ("lr", "lr_mult"):
            raise ValueError(
                "The learning rate is the Trainer's to schedule: use --lr_scheduler_type. That of single groups has "
                "LearningRateScheduleCallback."
            )
        if field.startswith("initial_"):
            moved = field.removeprefix("initial_")
            raise ValueError(f"{field} is the value of {moved} before any callback wrote it. Schedule {moved} instead.")
        self.field = self.writes = field
        self.schedule = Schedule.of(schedule)
        self.label = label
        self._pinned = f"{field}_pinned"
        for value in self.schedule.values:
            check_limits(f"A schedule of {field}", field, value)

    def begin(self, args: TrainingArguments, state: TrainerState) -> None:
        self.claim(state, self.field, self.label)
        self.schedule.check(total_steps=self.run.total_steps, steps_per_epoch=self.run.steps_per_epoch)
        for group in self.run.groups:
            if self.field == "p" and "p" not in group:
                raise ValueError(
                    "A schedule of p moves the exponent of Padam, got "
                    f"{type(unwrap_optimizer(self.run.optimizer)).__name__}, which has none. Train with --optim padam, "
                    "or drop the schedule."
                )
            numbers = [name for name, value in group.items() if type(value) in (int, float)]
            if self.field not in numbers:
                raise ValueError(
                    f"{self.field!r} is no number in this optimizer's groups; there are {', '.join(sorted(numbers))}."
                    f"{did_you_mean(self.field, numbers)}"
                )
        self.keep_initial(state, self.field)
        if self.label is not None:
            for group in self._groups():
                group[self._pinned] = group.get(self._pinned) or PINNED_BY_CALLBACK
        if not self._groups():
            raise ValueError(
                f"No parameter group is left to schedule {self.field} for: "
                + ("none decays at the start." if self.field == "weight_decay" else "each has its own p.")
                + " Name a label, or drop the schedule."
            )
        if self.field == "p" and state.global_step == 0 and state.is_world_process_zero:
            self._say_what_p_is_not_used()

    def _say_what_p_is_not_used(self) -> None:
        first = self.schedule.value(0, total_steps=self.run.total_steps, steps_per_epoch=self.run.steps_per_epoch)
        unused = sorted({group["p"] for group in self._groups()} - {first, 0.5})  # 0.5 need not be anybody's choice
        if unused:
            of = f" of {self.label}" if self.label else ""
            warnings.warn(
                f"p={', '.join(f'{p:g}' for p in unused)}{of} is not used: the schedule sets p from the first step on, "
                f"to {first:g} there. Drop one of them.",
                stacklevel=3,
            )

    def _groups(self) -> list[dict[str, Any]]:
        if self.label is not None:
            chosen = select(self.run.groups, self.label)
            by_rule = self.field == "weight_decay" and self.label == chosen[0].get(NAME)
            return [group for group in chosen if group.get("decays", True)] if by_rule else chosen
        free = [group for group in self.run.groups if not group.get(self._pinned)]
        if self.field == "weight_decay":
            return [group for group in free if group["initial_weight_decay"] > 0]
        return free

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        value = self.schedule.value(
            state.global_step, total_steps=self.run.total_steps, steps_per_epoch=self.run.steps_per_epoch
        )
        for group in self._groups():
            group[self.field] = value
