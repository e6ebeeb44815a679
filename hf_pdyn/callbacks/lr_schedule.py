"""`LearningRateScheduleCallback`: a label's or a named group's learning rate, beside the Trainer's scheduler."""

from __future__ import annotations

from typing import Any

from torch.optim.lr_scheduler import ReduceLROnPlateau
from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_pdyn.callbacks.base import PdynCallback
from hf_pdyn.grouping import select
from hf_pdyn.integrations.accelerate import unwrap_scheduler
from hf_pdyn.policy.limits import check_limits
from hf_pdyn.policy.schedules import Schedule

LR_FIELDS = ("lr", "lr_mult")


class LearningRateScheduleCallback(PdynCallback):
    """Writes the learning rate of some groups before every step.

    Args:
        field: `lr_mult` multiplies what the Trainer's scheduler gives the groups, `lr` replaces it.
        schedule: a `Schedule`, its text, such as `"linear:0..1@0..0.1"`, or a constant.
        label: a pathway, a component, or the name of a group rule.
        trainer: see `PdynCallback`.

    Example:
        >>> warm_up = LearningRateScheduleCallback("lr_mult", "linear:0..1@0..0.5", label="norm")
        >>> result = Trainer(model, args, train_dataset=data, callbacks=[warm_up]).train()
    """

    def __init__(self, field: str, schedule: Schedule | str | float, label: str, *, trainer: Any | None = None) -> None:
        super().__init__(trainer=trainer)
        if field not in LR_FIELDS:
            raise ValueError(f"field must be {' or '.join(LR_FIELDS)}, got {field!r}. Others have ScheduleCallback.")
        self.field = field
        self.schedule = Schedule.of(schedule)
        self.label = label
        for value in self.schedule.values:
            check_limits(f"A schedule of {field}", field, value)

    def begin(self, args: TrainingArguments, state: TrainerState) -> None:
        self.claim(state, "lr", self.label, restore=False)  # the Trainer's scheduler begins anew by itself
        self.schedule.check(total_steps=self.run.total_steps, steps_per_epoch=self.run.steps_per_epoch)
        chosen = select(self.run.groups, self.label)
        if any(group.get("lr") is None for group in chosen):
            raise ValueError(f"This optimizer finds its own learning rate, so {self.field} cannot be scheduled.")
        if self.field == "lr_mult" and isinstance(unwrap_scheduler(self.run.lr_scheduler), ReduceLROnPlateau):
            raise ValueError(
                "lr_mult cannot be scheduled beside reduce_lr_on_plateau, which goes on from the learning rate that it "
                "finds. Schedule lr, or use another --lr_scheduler_type."
            )

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        value = self.schedule.value(
            state.global_step, total_steps=self.run.total_steps, steps_per_epoch=self.run.steps_per_epoch
        )
        chosen = {id(group) for group in select(self.run.groups, self.label)}
        given = self._rates_of_scheduler()
        for group, rate in zip(self.run.groups, given, strict=True):
            if id(group) in chosen:
                new = value if self.field == "lr" else rate * value
                if hasattr(group["lr"], "fill_"):
                    group["lr"].fill_(new)  # captured graphs read this tensor
                else:
                    group["lr"] = new

    def _rates_of_scheduler(self) -> list[Any]:
        """What the Trainer's scheduler gave each group last; the groups' own where it does not say."""
        if self.field == "lr":
            return [None] * len(self.run.groups)
        return list(self.run.lr_scheduler.get_last_lr())  # type: ignore[attr-defined]
