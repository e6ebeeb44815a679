"""`WeightDecayShutoffCallback`: weight decay off from a moment of training on, or once it has done its work."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_pdyn.callbacks.decay_gauges import RatioGauge, TimeGauge
from hf_pdyn.callbacks.memory import check_remembered
from hf_pdyn.callbacks.remembering import RememberingCallback
from hf_pdyn.common.checkpoint_state import damaged
from hf_pdyn.common.errors import shortened
from hf_pdyn.common.numbers import is_number
from hf_pdyn.grouping import select
from hf_pdyn.integrations.transformers import all_callbacks
from hf_pdyn.policy.decay_targets import Approach, DecayTarget, moment_or_target
from hf_pdyn.policy.schedules import Moment

logger = logging.getLogger(__name__)

_INITIAL = "initial_weight_decay"
_STEP = "pdyn/wd_off/step"


class WeightDecayShutoffCallback(RememberingCallback):
    """Sets `group["weight_decay"]` to 0 from a moment or a target on, with any torch optimizer.

    What weight decay did to the implicit bias lasts after it is off (*time-dependent mirror flows*). A target waits for
    what it did rather than for a time: for a_t, the cumulative decay that telemetry logs, of the group that decays most
    of those switched off; or for the ratio of nuclear to Frobenius norm that a `SpectralCallback` beside this one
    measures. A target is reached when the quantity has been above it and is no longer: a_t is observed after every
    step, a ratio at every measurement. No later step decays. The next training record has `pdyn/wd_off/step`, how many
    steps were done then, and `pdyn/wd_off/QUANTITY`, the value. A run resumed from a checkpoint switches off at the
    same step as the uninterrupted one.

    The original values stand beside it as `initial_weight_decay`, as torch's schedulers keep
    `initial_lr`, and return with `until`.

    Args:
        at: from when on nothing decays. A `Moment`, its text ("0.5", "200", "epoch:2"), an int of steps or a float
            fraction; or a `DecayTarget` or its text ("a_t=-0.05", "lora/nuc_over_fro=2.5").
        until: the moment from which it decays again, also if the target is not reached by then; None is never.
        labels: pathways or components to switch off; None is all. Needs labelled groups (padam, or
            another optimizer over `build_param_groups`).
        trainer: see `PdynCallback`.

    Example:
        >>> trainer = Trainer(model, args, train_dataset=data, callbacks=[WeightDecayShutoffCallback(0.5)])
        >>> result = trainer.train()
        >>> {group["weight_decay"] for group in trainer.optimizer.param_groups}
        {0.0}
    """

    memory_name = "shutoff"
    without_memory = "Weight decay's way to the target starts"

    def __init__(
        self,
        at: Moment | DecayTarget | str | float,
        until: Moment | str | float | None = None,
        labels: Sequence[str] | None = None,
        *,
        trainer: Any | None = None,
    ) -> None:
        super().__init__(trainer=trainer)
        self.writes = "weight_decay"
        self.at = moment_or_target(at)
        self.until = None if until is None else Moment.of(until)
        self.labels = [labels] if isinstance(labels, str) else labels
        self.remembers = isinstance(self.at, DecayTarget)

    def begin(self, args: TrainingArguments, state: TrainerState) -> None:
        self.claim(state, "weight_decay")
        self._begin = self.run.step_of(self.at) if isinstance(self.at, Moment) else None
        self._end = self.run.step_of(self.until) if self.until is not None else None
        self._off = False
        if self._begin is not None and self._begin >= self.run.total_steps:
            raise ValueError(
                f"Weight decay would be switched off at {self.at}, which is step {self._begin}, but training ends "
                f"after step {self.run.total_steps}. Name an earlier moment, or a fraction such as 0.5."
            )
        if self._end is not None and self._end <= (self._begin or 0):
            off = f"{self.at}" if self._begin is None else f"{self.at} (step {self._begin})"
            raise ValueError(
                f"Weight decay must return after it was switched off, got off at {off} and on at {self.until} (step "
                f"{self._end})."
            )
        for group in self.run.groups:
            if "weight_decay" not in group:
                raise ValueError(f"{type(self.run.optimizer).__name__} has no weight_decay to switch off.")
        self.keep_initial(state, "weight_decay")
        if not any(group[_INITIAL] for group in self._groups()):
            raise ValueError(f"Weight decay is 0 in every group that would be switched off. {self._how_to_decay(args)}")
        self._time: TimeGauge | None = None
        self._ratio: RatioGauge | None = None
        self._unlogged: dict[str, float] = {}
        if isinstance(self.at, DecayTarget):
            self._approach = Approach.start(self.at)
            if self.at.product is None:
                self._time = TimeGauge(self.at, self.run, self._groups)

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

    def all_have_begun(self, state: TrainerState) -> None:
        if not isinstance(self.at, DecayTarget) or self._approach.reached_at is not None:
            return
        if self._time is not None:
            last = self.run.total_steps if self._end is None else min(self._end, self.run.total_steps)
            self._time.check_plan(first=state.global_step, last=last)
            return
        self._ratio = RatioGauge(self.at, self.run, all_callbacks(self, self._trainer))
        if state.global_step > 0:
            self._ratio.pass_over()  # it was observed before the checkpoint
            return
        self._observe_ratio()
        if self._approach.last is not None and not self._approach.above:
            raise ValueError(
                f"{self.at.quantity} is {self._approach.last:.4g} before the first step, which leaves weight decay "
                f"nothing to do until {self.at}. Write a smaller value."
            )

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._observe_ratio()
        begin = self._approach.reached_at if isinstance(self.at, DecayTarget) else self._begin
        off = begin is not None and begin <= state.global_step and (self._end is None or state.global_step < self._end)
        for group in self._groups():
            group["weight_decay"] = 0.0 if off else group[_INITIAL]
        if off != self._off and state.is_world_process_zero:
            logger.info("step %d: weight decay is %s, %s", state.global_step, "off" if off else "on", self._why(off))
        self._off = off

    def _why(self, off: bool) -> str:
        if not off:
            return f"as from {self.until}"
        if isinstance(self.at, Moment):
            return f"as from {self.at}"
        return (
            f"as {self.at.quantity} came to {self._approach.last:.6g} at step {self._approach.reached_at} ({self.at})"
        )

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._time is not None and self._approach.reached_at is None:
            a_t = self._time.take_step()
            if a_t is not None:
                self._observe(a_t, state.global_step + 1)

    def _observe_ratio(self) -> None:
        measured = self._ratio.measured() if self._ratio is not None else None
        if measured is not None:
            self._observe(*measured)

    def _observe(self, value: float, step: int) -> None:
        assert isinstance(self.at, DecayTarget)
        before, self._approach = self._approach, self._approach.observe(self.at, value, step)
        if self._approach.reached_at != before.reached_at:
            self._unlogged = {_STEP: step, _metric(self.at): value}

    def metrics(self, state: TrainerState) -> dict[str, float]:
        unlogged, self._unlogged = self._unlogged, {}
        return unlogged

    def stop_measuring(self) -> None:
        """Do nothing: counting decay cannot fail, and spectra are another callback's."""

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        super().on_train_end(args, state, control, **kwargs)
        if isinstance(self.at, DecayTarget) and self._approach.reached_at is None and state.is_world_process_zero:
            last = self._approach.last if self._time is None else self._time.value
            warnings.warn(
                f"Weight decay was never switched off: {self.at.quantity} did not fall to {self.at}, it was "
                f"{'at no measurement above it' if last is None else f'{last:.4g} at last'}.",
                stacklevel=2,
            )

    def remember(self) -> dict[str, Any] | None:
        if not isinstance(self.at, DecayTarget):
            return None
        self._observe_ratio()  # the resumed run does not measure this step again
        return {
            "target": str(self.at),
            "approach": self._approach.to_dict(),
            "a_t": None if self._time is None else self._time.value,
            "unlogged": self._unlogged,
        }

    def recall(self, memory: object) -> None:
        assert isinstance(self.at, DecayTarget)
        known, approach, a_t, unlogged = _check_memory(memory)
        if self._time is not None and a_t is not None:
            self._time.value = a_t
        if known == self.at:
            self._approach, self._unlogged = approach, unlogged
        else:
            warnings.warn(
                f"Weight decay was to wait for {known} in the run that wrote this checkpoint, and waits for {self.at} "
                "in this one. Whether that is reached is seen from this step on.",
                stacklevel=2,
            )


def _check_memory(memory: object) -> tuple[DecayTarget, Approach, float | None, dict[str, float]]:
    """The target, the way to it, a_t and what waits for a log record; ValueError for what cannot be remembered."""
    found = check_remembered(memory, ("target", "approach", "a_t", "unlogged"), "The state of weight decay's shutoff")
    text, a_t, unlogged = found["target"], found["a_t"], found["unlogged"]
    try:
        target = DecayTarget.parse(text if isinstance(text, str) else "")
    except ValueError:
        raise damaged(f"The target of weight decay's shutoff cannot be {shortened(str(text))}") from None
    approach = Approach.from_dict(found["approach"], target)
    reached_at, last = approach.reached_at, approach.last
    if target.product is not None:
        possible = a_t is None
    else:  # nothing decays once it is reached
        possible = is_number(a_t) and a_t <= 0 and (reached_at is None or a_t == last)
    if not possible or (reached_at is not None and reached_at > found["step"]):
        raise damaged(f"a_t cannot be {shortened(str(a_t))} at step {found['step']}, with {approach} to {target}")
    if unlogged != {} and (reached_at is None or unlogged != {_STEP: reached_at, _metric(target): last}):
        raise damaged(f"Metrics of weight decay's shutoff cannot be {shortened(str(unlogged))} after {approach}")
    return target, approach, a_t, unlogged


def _metric(target: DecayTarget) -> str:
    return f"pdyn/wd_off/{target.quantity}"
