"""What weight decay is to bring down to a target, as a shutoff observes it during training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback

from hf_pdyn.callbacks.base import TrainingRun
from hf_pdyn.callbacks.spectral import SpectralCallback
from hf_pdyn.integrations.accelerate import has_gradient_scaler, step_was_skipped, unwrap_optimizer
from hf_pdyn.measure.mirror_time import MirrorClock, planned_time, why_no_time
from hf_pdyn.measure.step_statistics import StepStatistics
from hf_pdyn.policy.decay_targets import DecayTarget
from hf_pdyn.tensors.sharding import agreed

Groups = Callable[[], list[dict[str, Any]]]
"""Looks up parameter groups anew: wrappers replace them."""

_CHOSEN = "chosen"


class TimeGauge:
    """a_t of the groups that are switched off, counted from their settings, alike in every process.

    Args:
        target: of a_t.
        run: the training.
        groups: those that are switched off, before they are.

    Raises:
        ValueError: their decay has no mirror time.
    """

    def __init__(self, target: DecayTarget, run: TrainingRun, groups: Groups) -> None:
        self._target, self._run, self._groups = target, run, groups
        self._optimizer = unwrap_optimizer(run.optimizer)
        self._clock = MirrorClock([_CHOSEN])
        for group in groups():
            decaying = {**group, "weight_decay": group["initial_weight_decay"]}
            reason = why_no_time(self._optimizer, decaying)
            if reason is not None:
                raise ValueError(f"a_t has no meaning here, so {target} cannot be reached: {reason}. Name a moment.")
        # Some optimizers decide on the device whether they skip a step that a scaler would, and only their hooks tell.
        scaled = has_gradient_scaler(run.optimizer)
        self._statistics = StepStatistics.of(run.optimizer, run.model) if scaled else None

    @property
    def value(self) -> float:
        """a_t so far. Reads off the device what stands there."""
        self._clock.settle()
        return self._clock.times[_CHOSEN]

    @value.setter
    def value(self, a_t: float) -> None:
        self._clock.times[_CHOSEN] = a_t

    def check_plan(self, *, first: int, last: int) -> None:
        """ValueError where the learning rate's schedule leaves too little decay between two steps."""
        planned = planned_time(self._optimizer, self._groups(), self._run.lr_scheduler, first=first, last=last)
        if planned is not None and not self._target.reached_by(self.value + planned):
            raise ValueError(
                f"By the learning rate's schedule a_t is {self.value + planned:.4g} after step {last}, so "
                f"{self._target} is not reached by then. Name a target nearer to 0, or raise --weight_decay, "
                "--learning_rate or the number of steps."
            )

    def take_step(self) -> float | None:
        """Count the step just taken; a_t where it may have come down to the target, else None, reading nothing."""
        if step_was_skipped(self._run.optimizer):
            return None
        of = self._optimizer if self._statistics is None else self._statistics
        found_inf = getattr(of, "found_inf", None)
        self._clock.take_step(self._optimizer, {_CHOSEN: self._groups()}, found_inf)
        return self.value if self._target.reached_by(self._clock.lowest(_CHOSEN)) else None


class RatioGauge:
    """A ratio of norms of a product, as a SpectralCallback measures it on the main process.

    Args:
        target: of the ratio.
        run: the training.
        callbacks: all of it, of which one measures.

    Raises:
        ValueError: nothing measures it, or it can come down to the target at no measurement.
    """

    def __init__(self, target: DecayTarget, run: TrainingRun, callbacks: Sequence[TrainerCallback]) -> None:
        assert target.product is not None
        spectral = next((found for found in callbacks if isinstance(found, SpectralCallback)), None)
        if spectral is None:
            raise ValueError(
                f"{target} is a ratio that SpectralCallback measures, and there is none. Add SpectralCallback(50) or "
                "--spectra 50, or name a moment or a_t."
            )
        self._metric = f"pdyn/spectrum/{target.quantity}"
        self._spectral, self._device = spectral, run.device
        self._seen_at: int | None = None
        interval, ranks = spectral.interval(), spectral.ranks()
        if interval is not None and interval >= run.total_steps:
            raise ValueError(
                f"Spectra are measured every {interval} steps and training has {run.total_steps}, so {target} can be "
                "reached at its end only. Measure more often, as by --spectra 50."
            )
        (rank,) = agreed([ranks.get(target.product, 0)], self._device)
        if rank < 1:
            raise ValueError(
                f"{target} follows {target.product}, of which no spectrum is measured in this model; measured are "
                f"{', '.join(ranks) or 'none at all'}. Name another quantity, or a moment."
            )
        if target.value >= math.sqrt(rank):
            raise ValueError(
                f"The ratio of nuclear to Frobenius norm is at most {math.sqrt(rank):.4g} at rank {rank:g}, so it "
                f"never falls to {target}. Write a smaller value."
            )

    def pass_over(self) -> None:
        """Count the last measurement as one that was observed."""
        self._seen_at = self._spectral.measured_at

    def measured(self) -> tuple[float, int] | None:
        """The ratio and the step of a measurement since the last call, if there was one and the product is not zero.

        The same on every process, all of which must come here after a measurement.
        """
        step = self._spectral.measured_at
        if step is None or step == self._seen_at:
            return None
        self._seen_at = step
        (ratio,) = agreed([self._spectral.latest.get(self._metric, math.nan)], self._device)
        return None if math.isnan(ratio) else (ratio, step)
