"""`AllocationCallback`: what every other p would make of the moments that the optimizer has now."""

from __future__ import annotations

import logging
import math
import time
import warnings
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_pdyn.callbacks.control import PControlCallback
from hf_pdyn.callbacks.memory import check_remembered, memory_of
from hf_pdyn.callbacks.remembering import RememberingCallback
from hf_pdyn.callbacks.row_buffer import RowBuffer
from hf_pdyn.common.checkpoint_state import damaged
from hf_pdyn.common.errors import shortened
from hf_pdyn.common.never_fatal import attempted, never_fatal
from hf_pdyn.common.numbers import is_count, is_number
from hf_pdyn.integrations.accelerate import step_was_skipped
from hf_pdyn.integrations.transformers import all_callbacks
from hf_pdyn.measure.power_moments import Found, PowerMomentsReader
from hf_pdyn.measure.step_statistics import StepStatistics
from hf_pdyn.measure.windows import Scope
from hf_pdyn.policy import allocation_curve as curve
from hf_pdyn.policy.algorithm1 import ControlConfig
from hf_pdyn.policy.intervals import parse_interval
from hf_pdyn.policy.row_budget import RowPlan, plan_rows
from hf_pdyn.run_dir.tables import ALLOCATION
from hf_pdyn.tensors.sharding import agreed

logger = logging.getLogger(__name__)

_MOST_OF_TRAINING = 0.01
"""The part of a training's time that measuring may take with `every="auto"`."""
_MOST_AFTER_THE_FIRST = 9
_FOR_GOOD = 2**31
"""Records that no training has."""
_METRICS = ("lr_factor", "cosine_to_adam", "update_ratio_slope", "p_step_factor")


class AllocationCallback(RememberingCallback):
    """Shows what p is for this model now: how much of it is a learning rate, how much direction, how much allocation.

    Of one step's moments, it takes what the update of any p from -0.4 to 1 would be (`policy.allocation_curve`), with
    padam and with every optimizer that keeps Adam's two moments. A training record that it measures has, of all
    parameters and the current p, `pdyn/allocation/...`:

    - `lr_factor`: c(p), by which a learning rate must grow for updates of the size of Adam's;
    - `cosine_to_adam`: between this p's update and Adam's, 1 where they differ by a learning rate alone;
    - `update_ratio_slope`: the derivative of log(U_w / U_b) by p, which way p moves the allocation;
    - `p_step_factor`: by what one p_step of Algorithm 1 upwards multiplies raw updates.

    The curves of pathways and components are rows of `tables.ALLOCATION` in the output directory.

    Args:
        every: "log" for every training record, a number of optimizer steps, or "auto": every training record, but as
            many fewer as keep its time, after the first, below 1 % of training; which ones depends on the machine.
        per_layer: the curves of layers as well.
        trainer: see `PdynCallback`.

    Example:
        >>> trainer = Trainer(model, args, train_dataset=data, callbacks=[AllocationCallback("log")])
        >>> result = trainer.train()
        >>> record = trainer.state.log_history[0]
        >>> record["pdyn/allocation/cosine_to_adam"]  # args have p = 1/2, so this is Adam
        1.0
    """

    memory_name = "allocation"
    without_memory = "The allocation curve starts"

    def __init__(self, every: int | str = "auto", per_layer: bool = False, *, trainer: Any | None = None) -> None:
        super().__init__(trainer=trainer)
        self.every = parse_interval("every", every, "auto", "log")
        self.per_layer = per_layer
        self.row_buffer = self._curves = RowBuffer(ALLOCATION)
        self._reader: PowerMomentsReader | None = None

    def begin(self, args: TrainingArguments, state: TrainerState) -> None:
        self.gave_up = self._said_why = False
        self._reader = None
        self._plan = RowPlan(interval=1, every=1, total_steps=self.run.total_steps)
        self._measured_at: int | None = None
        self._unlogged: dict[str, float] = {}
        self._records_to_skip = 0
        self._first = True
        self._since = time.perf_counter()
        self._start_measuring(args, state)

    @never_fatal
    def _start_measuring(self, args: TrainingArguments, state: TrainerState) -> None:
        self._statistics = StepStatistics.of(self.run.optimizer, self.run.model)
        controls = [c for c in all_callbacks(self, self._trainer) if isinstance(c, PControlCallback)]
        self._p_step = controls[0].config.p_step if controls else ControlConfig.p_step
        if self._statistics.unavailable:
            self._say_why(self._statistics.unavailable, state)
        else:
            self._reader = PowerMomentsReader(self._statistics, per_layer=self.per_layer)
            interval = self.every if isinstance(self.every, int) else self.run.logging_interval(args, state)
            values = self._reader.most_curves * len(curve.EXPONENTS)
            self._plan = plan_rows(values, interval=interval, total_steps=self.run.total_steps)
            if self._plan.thinned and self.every != "auto" and state.is_world_process_zero:
                logger.warning("pdyn allocation curves are kept of %s, and of the last.", self._plan.thinned)

    def stop_measuring(self) -> None:
        """Log nothing from here on. While parameters are sharded, other processes wait for this one's part."""
        self._unlogged = {}
        if self._reader is not None and not self._statistics.sharded:
            self._reader = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        due = isinstance(self.every, int) and state.global_step % self.every == 0
        if due and not step_was_skipped(self.run.optimizer):
            self._unlogged = self._measure(state) or {}

    def metrics(self, state: TrainerState) -> dict[str, float]:
        if self.every in ("log", "auto") and self._measured_at == state.global_step:
            return {}  # the summary of a training, after its last record
        if self.every == "log":
            return self._measure(state) or {}
        if self.every == "auto":
            return self._measure_within_limit(state)
        unlogged, self._unlogged = self._unlogged, {}
        return unlogged

    def _measure_within_limit(self, state: TrainerState) -> dict[str, float]:
        """All processes come to it, also one that gave up, and to what they agree on."""
        if self._records_to_skip > 0:
            self._records_to_skip -= 1
            return {}
        if self._reader is None and not self.gave_up:
            return {}  # in no process is there one
        if self._reader is not None:
            self._statistics.zeros(1).item()  # waits for the steps before: they are no part of the cost
        begun = time.perf_counter()
        found = self._measure(state)
        ended = time.perf_counter()
        skipped = _records_to_skip(cost=ended - begun, training=begun - self._since)
        if self._first:  # it has costs of its own
            self._first, skipped = False, min(skipped, _MOST_AFTER_THE_FIRST)
        skipped = max(skipped, self._plan.every - 1)
        if self._reader is None:
            skipped = _FOR_GOOD  # where rank 0 says so, since nobody logs what the others would measure
        (skipped,) = map(int, agreed([skipped], self.run.device))
        self._records_to_skip, self._since = skipped, ended
        return found or {}

    def _measure(self, state: TrainerState) -> dict[str, float] | None:
        """All processes come to it where parameters are sharded, also one that gave up."""
        self._measured_at = state.global_step
        if self._reader is None:
            return None
        return self._note(state, attempted(self, self._reader.read))

    @never_fatal
    def _note(self, state: TrainerState, found: Found | None) -> dict[str, float] | None:
        if found is None or not found.moments:
            self._say_why(found.reason if found else None, state)
            return None
        p = self._current_p()
        if self.every == "auto" or self._plan.takes(state.global_step):
            self._curves.add(state, _rows(found, p))
        if not curve.P_MIN <= p <= curve.P_MAX:
            return None
        return {f"pdyn/allocation/{name}": value for name, value in _values(found, p, self._p_step).items()}

    def _current_p(self) -> float:
        groups = self.run.groups
        free = [group for group in groups if not group.get("p_pinned")]
        return float((free or groups)[0].get("p", curve.ADAM))

    def _say_why(self, reason: str | None, state: TrainerState) -> None:
        if reason and not self._said_why and state.is_world_process_zero:
            self._said_why = True
            warnings.warn(f"pdyn allocation curve: {reason}.", stacklevel=2)

    def take_up(self, state: TrainerState) -> None:
        if self.memory_name in memory_of(state):  # without it, nothing is lost: a curve is of one step
            super().take_up(state)

    def remember(self) -> dict[str, Any]:
        # A resumed run measures again.
        return {"unlogged": self._unlogged, "records_to_skip": 0 if self.gave_up else self._records_to_skip}

    def recall(self, memory: object) -> None:
        try:
            found = check_remembered(memory, ("unlogged", "records_to_skip"), "The allocation state")
            self._unlogged = _check_unlogged(found["unlogged"])
            if not is_count(found["records_to_skip"]):
                raise damaged(f"records_to_skip must be a count, got {shortened(str(found['records_to_skip']))}")
            self._records_to_skip = found["records_to_skip"]
        except ValueError as error:
            self.say_what_starts_anew(error)


def _records_to_skip(*, cost: float, training: float) -> int:
    """How many training records, `training` seconds apart, to leave out after one that cost so many seconds."""
    return max(0, math.ceil(cost / (_MOST_OF_TRAINING * max(training, 1e-9))) - 1)


def _values(found: Found, p: float, p_step: float) -> dict[str, float]:
    weight, bias_like = (found.moments.get(Scope(pathway)) for pathway in ("weight", "bias_like"))
    whole = curve.total([moments for moments in (weight, bias_like) if moments is not None])
    values = {
        "lr_factor": curve.lr_factor(whole, p),
        "cosine_to_adam": curve.cosine(whole, p),
        "p_step_factor": curve.size_factor(whole, p, p_step),
    }
    if weight is not None and bias_like is not None:
        values["update_ratio_slope"] = curve.update_ratio_slope(weight, bias_like, p)
    return values


def _rows(found: Found, p: float) -> list[dict[str, Any]]:
    return [
        {
            "pathway": scope.pathway,
            "component": scope.component,
            "layer": scope.layer,
            "p": p,
            "log_moments": list(moments.log_values),
        }
        for scope, moments in found.moments.items()
    ]


def _check_unlogged(found: object) -> dict[str, float]:
    known = {f"pdyn/allocation/{name}" for name in _METRICS}
    if not isinstance(found, dict) or not found.keys() <= known or not all(map(is_number, found.values())):
        raise damaged(f"The allocation state must hold finite numbers by metric, got {shortened(str(found))}")
    return found
