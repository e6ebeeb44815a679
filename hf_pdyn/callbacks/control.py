"""`PControlCallback`: Algorithm 1 at the end of every interval of training."""

from __future__ import annotations

import dataclasses
import logging
import math
import warnings
from typing import Any

from transformers import TrainerState, TrainingArguments

from hf_pdyn.callbacks.deciding import DecidingCallback, config_of
from hf_pdyn.callbacks.memory import check_remembered
from hf_pdyn.callbacks.row_buffer import RowBuffer
from hf_pdyn.common.checkpoint_state import damaged
from hf_pdyn.common.errors import shortened
from hf_pdyn.common.never_fatal import attempted, described
from hf_pdyn.grouping import how_to_train_bias_like
from hf_pdyn.integrations.transformers import processes_train_apart
from hf_pdyn.measure.power_moments import PowerMomentsReader
from hf_pdyn.measure.step_statistics import StepStatistics
from hf_pdyn.measure.windows import Scope, Window
from hf_pdyn.policy.algorithm1 import BRANCHES, ControlConfig, ControlState, next_p
from hf_pdyn.policy.allocation_curve import size_factor, total
from hf_pdyn.run_dir.tables import DECISIONS
from hf_pdyn.tensors.sharding import agreed

logger = logging.getLogger(__name__)

_NOTHING = (math.nan, math.nan)

_HARMLESS = 1.05
"""A decision that multiplies updates by less is not worth a warning."""


class PControlCallback(DecidingCallback):
    """Moves `p` of a `Padam` by *Information allocation dynamics*, Algorithm 1.

    D_w and D_b are means of gradient norms before clipping (with clipping active the clipped ones obey
    D_w^2 + D_b^2 = const, and the algorithm would see that instead of the training). Groups whose p was
    set by label in `optim_args` keep it. The next training record has the last decision as
    `pdyn/control/...`: `branch` is the index in `hf_pdyn.policy.algorithm1.BRANCHES`, `decisions` how many there
    were since the record before; each is a line of the logger at level INFO.

    Args:
        config: range, step and threshold.
        interval, trainer: see `DecidingCallback`.

    Example:
        >>> control = PControlCallback(interval=2)
        >>> trainer = Trainer(model, args, train_dataset=data, callbacks=[control])
        >>> result = trainer.train()
        >>> control.config.p_min <= trainer.optimizer.param_groups[0]["p"] <= control.config.p_max
        True
    """

    memory_name = "control"
    controller = "Algorithm 1"
    only_observes_first = True
    without_memory = "Algorithm 1 starts, from the checkpoint's p,"

    def __init__(
        self, config: ControlConfig | None = None, interval: int | str = "auto", *, trainer: Any | None = None
    ) -> None:
        super().__init__(interval, trainer=trainer)
        self.config = config_of(config)
        self.row_buffer = self._decisions = RowBuffer(DECISIONS)
        self._window: Window | None = None
        self._unlogged: list[ControlState] = []

    def begin(self, args: TrainingArguments, state: TrainerState) -> None:
        self.gave_up = False
        self._window = None
        self._said_factor = False
        self.check_padam()
        free = self.free_groups()
        self.config.check_start(free[0]["p"])
        self.claim(state, "p")
        self.keep_initial(state, "p")
        if processes_train_apart(self._trainer):
            raise ValueError(
                "Algorithm 1 steers one training, and the processes of this launch do not average their gradients. "
                "Call no evaluate() before train(), use eval_on_start; or leave p_control off."
            )
        self._statistics = statistics = StepStatistics.of(self.run.optimizer, self.run.model)
        if statistics.unavailable:
            raise ValueError(
                f"Algorithm 1 cannot read the gradients: {statistics.unavailable}, or leave p_control off."
            )
        if statistics.pathways != {"weight", "bias_like"}:
            raise ValueError(
                "Algorithm 1 compares the gradients of weights with those of bias-like parameters; this run trains "
                f"only {', '.join(sorted(statistics.pathways)) or 'unlabelled'} parameters. With LoRA, train "
                f"{how_to_train_bias_like(self.run.model)} too; or leave p_control off."
            )
        self.resolve_interval(state)
        self._window = statistics.window()
        self._state = ControlState(p=free[0]["p"])
        self._unlogged = []

    def stop_measuring(self) -> None:
        """Decisions go by what rank 0 reads. While parameters are sharded, other processes wait for this one's part."""
        if self._window is not None and not self._statistics.sharded:
            self._window = None

    def decide(self, state: TrainerState) -> None:
        """Read D_w and D_b of the interval, and take one decision of Algorithm 1."""
        weight_norm, bias_norm = agreed(self._read() or _NOTHING, self.run.device)
        if not (math.isfinite(weight_norm) and math.isfinite(bias_norm)):
            return
        before = self._state.p
        self._state = next_p(self._state, weight_norm=weight_norm, bias_norm=bias_norm, config=self.config)
        self._unlogged.append(self._state)
        self._decisions.add(state, [self._state.to_dict()])
        logger.info("step %d: %s, p %.4g -> %.4g", state.global_step, self._state.branch, before, self._state.p)
        if self._state.p != before and state.global_step < self.run.total_steps:
            self._say_what_a_decision_multiplies(state, before)
        self._apply()

    def _say_what_a_decision_multiplies(self, state: TrainerState, before: float) -> None:
        """Warn, at the first decision that moves p, of what it does to the size of raw updates. For all processes."""
        said, self._said_factor = self._said_factor, True
        groups = self.run.groups
        if said or groups[0]["update_scale"] == "adam" or any(group.get("p_pinned") for group in groups):
            return
        factor = self._size_factor(before)
        if factor is not None and state.is_world_process_zero and not 1 / _HARMLESS < factor < _HARMLESS:
            warnings.warn(
                f"Algorithm 1 moved p from {before:g} to {self._state.p:g}, which multiplies every update by "
                f"{factor:.3g}: most of what a decision does here is a change of the learning rate. Use "
                "update_scale=adam (--optim_args), which keeps the size of updates, or lower the learning rate.",
                stacklevel=2,
            )

    def _size_factor(self, before: float) -> float | None:
        try:
            moments = PowerMomentsReader(self._statistics, per_layer=False).read().moments
            pathways = [moments[scope] for scope in (Scope("weight"), Scope("bias_like")) if scope in moments]
            return size_factor(total(pathways), before, self._state.p - before) if pathways else None
        except Exception as error:  # nothing that training needs
            logger.info("The factor of a decision could not be measured: %s", described(error))
            return None

    def _read(self) -> tuple[float, float] | None:
        """D_w and D_b of the interval, or nothing."""
        reading = attempted(self, self._window.read) if self._window is not None else None
        if self.gave_up or reading is None or reading.weight_norm is None or reading.bias_norm is None:
            return None
        return reading.weight_norm, reading.bias_norm

    def _apply(self) -> None:
        for group in self.free_groups():
            group["p"] = self._state.p

    def metrics(self, state: TrainerState) -> dict[str, float]:
        decided, self._unlogged = self._unlogged, []
        if not decided:
            return {}
        last = decided[-1]
        values = dataclasses.asdict(last) | {"branch": BRANCHES.index(last.branch), "decisions": len(decided)}
        return {f"pdyn/control/{name}": float(value) for name, value in values.items() if value is not None}

    def remember(self) -> dict[str, Any]:
        return {
            "state": self._state.to_dict(),
            "window": attempted(self, self._window.state_dict) if self._window is not None else None,
            "unlogged": [decided.to_dict() for decided in self._unlogged],
        }

    def recall(self, memory: object) -> None:
        found = check_remembered(memory, ("state", "window", "unlogged"), "The control state")
        self._state = ControlState.from_dict(found["state"])
        if not isinstance(found["unlogged"], list):
            raise damaged(
                f"The control state's unlogged decisions must be a list, got {shortened(str(found['unlogged']))}"
            )
        self._unlogged = [ControlState.from_dict(decided) for decided in found["unlogged"]]
        self.config.check_start(self._state.p)
        if self._window is not None and found["window"] is not None:
            self._window.load_state_dict(found["window"])
            self._steps = len(self._window)
        self._apply()
