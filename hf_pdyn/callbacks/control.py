"""`PControlCallback`: Algorithm 1 at the end of every interval of training."""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import Any

from torch.optim import Optimizer
from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_pdyn.callbacks.base import RememberingCallback, check_interval, check_keys
from hf_pdyn.callbacks.row_buffer import RowBuffer
from hf_pdyn.common.never_fatal import never_fatal
from hf_pdyn.integrations.accelerate import step_was_skipped, unwrap_optimizer
from hf_pdyn.integrations.transformers import processes_train_apart
from hf_pdyn.measure.step_statistics import StepStatistics
from hf_pdyn.measure.windows import Window
from hf_pdyn.policy.algorithm1 import BRANCHES, ControlConfig, ControlState, next_p
from hf_pdyn.run_dir.tables import DECISIONS
from hf_pdyn.tensors.sharding import agreed, first_param

logger = logging.getLogger(__name__)

_NOTHING = (math.nan, math.nan)


class PControlCallback(RememberingCallback):
    """Moves `p` of a `Padam` by *Information allocation dynamics*, Algorithm 1.

    D_w and D_b are means of gradient norms before clipping (with clipping active the clipped ones obey
    D_w^2 + D_b^2 = const, and the algorithm would see that instead of the training). Groups whose p was
    set by label in `optim_args` keep it. The next training record has the last decision as
    `pdyn/control/...`: `branch` is the index in `hf_pdyn.policy.algorithm1.BRANCHES`, `decisions` how many there
    were since the record before; each is a line of the logger at level INFO.

    Args:
        config: range, step and threshold.
        interval: "epoch", or a number of optimizer steps.
        trainer: see `PdynCallback`.
    """

    memory_name = "control"
    writes = "p"
    without_memory = "Algorithm 1 starts, from the checkpoint's p,"

    def __init__(
        self, config: ControlConfig | None = None, interval: int | str = "epoch", *, trainer: Any | None = None
    ) -> None:
        super().__init__(trainer=trainer)
        check_interval("interval", interval)
        self.config = config or ControlConfig()
        self.interval = interval
        self.row_buffer = self._decisions = RowBuffer(DECISIONS)
        self._window: Window | None = None
        self._unlogged: list[ControlState] = []
        self._unfinished: tuple[Optimizer, list[float]] | None = None

    def begin(self, args: TrainingArguments, state: TrainerState) -> None:
        self.gave_up = False
        self._window = None
        free = self._free_groups()
        self._undo_unfinished(state)
        self.config.check_start(free[0]["p"])
        self.claim(state, "p")
        self.keep_initial(state, "p")
        if processes_train_apart(self._trainer):
            raise ValueError(
                "Algorithm 1 steers one training, and the processes of this launch do not average their gradients. "
                "Call no evaluate() before train(), use eval_on_start; or leave p_control off."
            )
        if self.interval != "epoch" and int(self.interval) > self.run.total_steps:
            raise ValueError(
                f"An interval must end within training: got {self.interval} steps, training has "
                f"{self.run.total_steps}. Write a smaller interval."
            )
        statistics = StepStatistics.of(self.run.optimizer, self.run.model)
        if statistics.unavailable:
            raise ValueError(
                f"Algorithm 1 cannot read the gradients: {statistics.unavailable}, or leave p_control off."
            )
        if statistics.pathways != {"weight", "bias_like"}:
            raise ValueError(
                "Algorithm 1 compares the gradients of weights with those of bias-like parameters; this run trains "
                f"only {', '.join(sorted(statistics.pathways)) or 'unlabelled'} parameters. With LoRA, train biases "
                'too (LoraConfig(bias="all")), norms (modules_to_save=["ln_1", ...]) or magnitudes '
                "(use_dora=True); or leave p_control off."
            )
        self._window = statistics.window()
        self._steps = 0
        self._state = ControlState(p=free[0]["p"])
        self._unlogged = []
        self._unfinished = (unwrap_optimizer(self.run.optimizer), [group["p"] for group in self.run.groups])

    def _undo_unfinished(self, state: TrainerState) -> None:
        """Start where a training that broke off had started.

        `auto_find_batch_size` begins again with the same optimizer, whose p has been moved.
        """
        if self._unfinished is not None and state.global_step == 0:
            optimizer, exponents = self._unfinished
            if optimizer is unwrap_optimizer(self.run.optimizer):
                for group, p in zip(self.run.groups, exponents, strict=False):
                    group["p"] = p
        self._unfinished = None

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._unfinished = None
        super().on_train_end(args, state, control, **kwargs)

    def stop_measuring(self) -> None:
        """Read nothing from here on; decisions go by what rank 0 reads."""
        self._window = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._steps += not step_was_skipped(self.run.optimizer)
        if self._interval_ends(state):
            self._decide(state)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.interval == "epoch" and self.run.steps_per_epoch is None:
            self._decide(state)
        super().on_epoch_end(args, state, control, **kwargs)

    def _interval_ends(self, state: TrainerState) -> bool:
        # Counted apart from the window, which stays empty where measuring failed: every process must come to `agreed`.
        if self.interval != "epoch":
            return self._steps >= int(self.interval)
        return self.run.ends_epoch(state.global_step)

    def _decide(self, state: TrainerState) -> None:
        self._steps = 0
        weight_norm, bias_norm = agreed(self._read() or _NOTHING, first_param(self.run.groups).device)
        if not (math.isfinite(weight_norm) and math.isfinite(bias_norm)):
            return
        before = self._state.p
        self._state = next_p(self._state, weight_norm=weight_norm, bias_norm=bias_norm, config=self.config)
        self._unlogged.append(self._state)
        self._decisions.add(state, [self._state.to_dict()])
        logger.info("step %d: %s, p %.4g -> %.4g", state.global_step, self._state.branch, before, self._state.p)
        self._apply()

    @never_fatal
    def _read(self) -> tuple[float, float] | None:
        """D_w and D_b of the interval, or nothing."""
        reading = self._window.read() if self._window is not None else None
        if reading is None or reading.weight_norm is None or reading.bias_norm is None:
            return None
        return reading.weight_norm, reading.bias_norm

    def _apply(self) -> None:
        for group in self._free_groups():
            group["p"] = self._state.p

    def _free_groups(self) -> list[dict[str, Any]]:
        if any("p" not in group for group in self.run.groups):
            raise ValueError(
                "Algorithm 1 moves the exponent p of Padam, got "
                f"{type(unwrap_optimizer(self.run.optimizer)).__name__}, which has none. Train with --optim padam, or "
                "leave p_control off."
            )
        free = [group for group in self.run.groups if not group.get("p_pinned")]
        if not free:
            raise ValueError(
                "Every parameter group has its own p from optim_args (p.LABEL=...), which control leaves alone: "
                "nothing is left to control. Drop the overrides or p_control."
            )
        return free

    def metrics(self, state: TrainerState) -> dict[str, float]:
        decided, self._unlogged = self._unlogged, []
        if not decided:
            return {}
        last = decided[-1]
        values = dataclasses.asdict(last) | {"branch": BRANCHES.index(last.branch), "decisions": len(decided)}
        return {f"pdyn/control/{name}": float(value) for name, value in values.items() if value is not None}

    @never_fatal
    def remember(self) -> dict[str, Any] | None:
        return {
            "state": self._state.to_dict(),
            "window": self._window.state_dict() if self._window is not None else None,
            "unlogged": [decided.to_dict() for decided in self._unlogged],
        }

    def recall(self, memory: dict[str, Any]) -> None:
        check_keys(memory, ("step", "state", "window", "unlogged"), "The control state")
        for state in (memory["state"], *memory["unlogged"]):
            check_keys(state, [field.name for field in dataclasses.fields(ControlState)], "Algorithm 1's state")
        self._state = ControlState.from_dict(memory["state"])
        self._unlogged = [ControlState.from_dict(decided) for decided in memory["unlogged"]]
        self.config.check_start(self._state.p)
        if self._window is not None and memory["window"] is not None:
            self._window.load_state_dict(memory["window"])
            self._steps = len(self._window)
        self._apply()
