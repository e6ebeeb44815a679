"""What callbacks share that move p at the end of every interval: the interval, and the groups that follow."""

from __future__ import annotations

import logging
import warnings
from abc import abstractmethod
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_pdyn.callbacks.remembering import RememberingCallback
from hf_pdyn.integrations.accelerate import step_was_skipped, unwrap_optimizer
from hf_pdyn.policy.algorithm1 import ControlConfig
from hf_pdyn.policy.intervals import auto_interval, parse_interval, useful_decisions

logger = logging.getLogger(__name__)

_FEWEST_USEFUL = 2
"""Decisions that can change a step, below which a warning says that control has hardly any effect."""


def config_of(config: ControlConfig | None) -> ControlConfig:
    """The limits of a controller, the defaults for None; ValueError for anything else."""
    if not isinstance(config, ControlConfig | None):
        raise ValueError(f"config must be a ControlConfig, such as ControlConfig(p_min=0.3), got {config!r}.")
    return config or ControlConfig()


class DecidingCallback(RememberingCallback):
    """Calls `decide` at the end of every interval, on every process.

    Args:
        interval: "auto" for about 20 decisions in the training, at least 10 steps apart; "epoch", as the paper of
            Algorithm 1 has it; or a number of optimizer steps. In `run.json`, `interval_steps` is what "auto" came to.
        trainer: see `PdynCallback`.
    """

    writes = "p"
    controller: str
    """The subject of messages."""
    only_observes_first = False
    """Whether no decision follows the first interval."""

    def __init__(self, interval: int | str = "auto", *, trainer: Any | None = None) -> None:
        super().__init__(trainer=trainer)
        self.interval = parse_interval("interval", interval, "auto", "epoch")

    @abstractmethod
    def decide(self, state: TrainerState) -> None:
        """End an interval; all processes come to it."""

    def resolve_interval(self, state: TrainerState) -> None:
        """Begin the first interval; says so where hardly any decision is useful, ValueError for one beyond the end."""
        self._steps = 0
        total = self.run.total_steps
        if self.interval == "epoch":
            steps = self.run.steps_per_epoch  # None for epochs of unknown length
        else:
            steps = auto_interval(total) if self.interval == "auto" else int(self.interval)
        self._interval_steps = steps
        if isinstance(self.interval, int) and self.interval > total:
            raise ValueError(
                f"An interval must end within training: got {self.interval} steps, training has {total}. Write a "
                "smaller interval."
            )
        if steps is not None and state.is_world_process_zero:
            useful = useful_decisions(total, steps, only_observes_first=self.only_observes_first)
            logger.info("%s decides every %d optimizer steps; %d decisions can move p", self.controller, steps, useful)
            if useful < _FEWEST_USEFUL:
                observing = ", and the first one only observes" if self.only_observes_first else ""
                warnings.warn(
                    f"{self.controller} {('cannot move p', 'can move p only once')[useful]} in this training: it has "
                    f"{total} steps, an interval takes {steps}{observing}. Train longer, or choose shorter intervals "
                    "(--p_interval).",
                    stacklevel=2,
                )

    def resolved(self) -> dict[str, Any]:
        return {"interval_steps": self._interval_steps}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._steps += not step_was_skipped(self.run.optimizer)
        if self._interval_ends(state):
            self._steps = 0
            self.decide(state)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.interval == "epoch" and self.run.steps_per_epoch is None:
            self._steps = 0
            self.decide(state)
        super().on_epoch_end(args, state, control, **kwargs)

    def _interval_ends(self, state: TrainerState) -> bool:
        if self.interval == "epoch":
            return self.run.ends_epoch(state.global_step)
        # Counted, not read from what is measured, which stays empty where that failed: every process must decide.
        return self._interval_steps is not None and self._steps >= self._interval_steps

    def check_padam(self) -> None:
        """ValueError for an optimizer whose groups have no p."""
        if any("p" not in group for group in self.run.groups):
            raise ValueError(
                f"{self.controller} moves the exponent p of Padam, got "
                f"{type(unwrap_optimizer(self.run.optimizer)).__name__}, which has none. Train with --optim padam, or "
                "leave p_control off."
            )

    def free_groups(self) -> list[dict[str, Any]]:
        """The groups whose p is not set by label; ValueError where there is none."""
        free = [group for group in self.run.groups if not group.get("p_pinned")]
        if not free:
            raise ValueError(
                "Every parameter group has its own p from optim_args (p.LABEL=...), which control leaves alone: "
                "nothing is left to control. Drop the overrides or p_control."
            )
        return free
