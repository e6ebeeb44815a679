"""`WeightDecayShutoffCallback`: weight decay off from some moment of training on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_pdyn.callbacks.base import PdynCallback
from hf_pdyn.grouping import select
from hf_pdyn.policy.schedules import Moment

_INITIAL = "initial_weight_decay"


class WeightDecayShutoffCallback(PdynCallback):
    """Sets `group["weight_decay"]` to 0 between two moments, with any torch optimizer.

    What weight decay did to the implicit bias lasts after it is off (*time-dependent mirror flows*).
    The original values stand beside it as `initial_weight_decay`, as torch's schedulers keep
    `initial_lr`, and return with `until`.

    Args:
        at: the moment from which nothing decays: a `Moment`, its text ("0.5", "200", "epoch:2"), an int
            of steps or a float fraction.
        until: the moment from which it decays again; None is never.
        labels: pathways or components to switch off; None is all. Needs labelled groups (padam, or
            another optimizer over `build_param_groups`).
        trainer: see `PdynCallback`.
    """

    def __init__(
        self,
        at: Moment | str | float,
        until: Moment | str | float | None = None,
        labels: Sequence[str] | None = None,
        *,
        trainer: Any | None = None,
    ) -> None:
        super().__init__(trainer=trainer)
        self.writes = "weight_decay"
        self.at = Moment.of(at)
        self.until = None if until is None else Moment.of(until)
        self.labels = [labels] if isinstance(labels, str) else labels

    def begin(self, args: TrainingArguments, state: TrainerState) -> None:
        self.claim(state, "weight_decay")
        self._begin = self.run.step_of(self.at)
        self._end = self.run.step_of(self.until) if self.until is not None else None
        if self._begin >= self.run.total_steps:
            raise ValueError(
                f"Weight decay would be switched off at {self.at}, which is step {self._begin}, but training ends "
                f"after step {self.run.total_steps}. Name an earlier moment, or a fraction such as 0.5."
            )
        if self._end is not None and self._end <= self._begin:
            raise ValueError(
                f"Weight decay must return after it was switched off, got off at {self.at} (step {self._begin}) and on "
                f"at {self.until} (step {self._end})."
            )
        for group in self.run.groups:
            if "weight_decay" not in group:
                raise ValueError(f"{type(self.run.optimizer).__name__} has no weight_decay to switch off.")
        self.keep_initial(state, "weight_decay")
        if not any(group[_INITIAL] for group in self._groups()):
            raise ValueError(f"Weight decay is 0 in every group that would be switched off. {self._how_to_decay(args)}")

    def _how_to_decay(self, args: TrainingArguments) -> str:
        if not args.weight_decay:
            return "Set --weight_decay, or drop the shutoff."
        decay = f"{args.weight_decay:g}"
        return (
            f"The Trainer applies weight_decay={decay} to no bias and no norm, and nothing else is trained in these "
            f"groups. Give them one (--optim padam --optim_args weight_decay.bias_like={decay}, or "
            "build_param_groups(decay_bias_like=True)), or drop the shutoff."
        )

    def _groups(self) -> list[dict[str, Any]]:
        if self.labels is None:
            return self.run.groups
        chosen = [group for label in self.labels for group in select(self.run.groups, label)]
        return list({id(group): group for group in chosen}.values())

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        off = self._begin <= state.global_step and (self._end is None or state.global_step < self._end)
        for group in self._groups():
            group["weight_decay"] = 0.0 if off else group[_INITIAL]
