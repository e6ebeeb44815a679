"""`GroupRulesCallback`: parameter groups of a user's own, with any optimizer."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer
from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_pdyn.callbacks.base import PdynCallback
from hf_pdyn.callbacks.lr_schedule import LR_FIELDS, LearningRateScheduleCallback
from hf_pdyn.callbacks.schedule import ScheduleCallback
from hf_pdyn.grouping import NAME, split_by_rules
from hf_pdyn.integrations.accelerate import unwrap_optimizer
from hf_pdyn.integrations.transformers import after_create_optimizer
from hf_pdyn.policy.group_rules import GroupRule, GroupRules

_RULES = "_hf_pdyn_group_rules"
"""The optimizer's attribute that holds the rules its groups were split by."""


class GroupRulesCallback(PdynCallback):
    """Splits the optimizer's parameter groups by rules over names, right after the Trainer has built it.

    It works with every optimizer that reads its settings from `param_groups`, and with Trainers that build their own in
    `create_optimizer`. Telemetry has `pdyn/by_group/NAME/...`, and schedules take the names as labels; the rules'
    own schedules become callbacks of the Trainer.

    Args:
        rules: `GroupRules`, a list of mappings, or the path of a YAML file.
        trainer: see `PdynCallback`.

    Example:
        >>> rules = [{"name": "tokens", "match": "wte|wpe", "lr_mult": 0.1}]
        >>> trainer = Trainer(model, args, train_dataset=data, callbacks=[GroupRulesCallback(rules)])
        >>> result = trainer.train()
        >>> any(group.get("group_name") == "tokens" for group in trainer.optimizer.param_groups)
        True
    """

    def __init__(
        self,
        rules: GroupRules | Sequence[Mapping[str, Any] | GroupRule] | Path | str,
        *,
        trainer: Any | None = None,
    ) -> None:
        super().__init__(trainer=trainer)
        self.rules = GroupRules.of(rules)
        self._watched: Any | None = None
        if trainer is not None:
            self._watch(trainer)

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        super().on_init_end(args, state, control, **kwargs)
        trainer = self.running_trainer()
        if trainer is not None:
            self._watch(trainer)

    def _watch(self, trainer: Any) -> None:
        if self._watched is trainer:
            return
        self._watched = trainer
        after_create_optimizer(trainer, self._split)
        for field, name, schedule in self.rules.schedules():
            kind = LearningRateScheduleCallback if field in LR_FIELDS else ScheduleCallback
            trainer.add_callback(kind(field, schedule, name))

    def _split(self, optimizer: Optimizer, model: nn.Module) -> None:
        inner = unwrap_optimizer(optimizer)
        if vars(inner).get(_RULES) is self.rules:  # of an earlier train()
            return
        if _RULES in vars(inner):
            raise ValueError("Two sets of group rules are given for one optimizer. Join them into one list.")
        if any("initial_lr" in group for group in inner.param_groups):
            raise ValueError(
                "Group rules must come before the learning rate's scheduler, which this optimizer has already. Give "
                "Trainer(optimizers=(optimizer, None)) and --lr_scheduler_type."
            )
        if hasattr(inner, "_params"):
            raise ValueError(f"{type(inner).__name__} steps all parameters as one: it takes no groups.")
        inner.param_groups[:] = split_by_rules(inner.param_groups, model, self.rules)
        setattr(inner, _RULES, self.rules)
        self._given = [_settings(group) for group in inner.param_groups]

    def begin(self, args: TrainingArguments, state: TrainerState) -> None:
        inner = unwrap_optimizer(self.run.optimizer)
        names = {group.get(NAME) for group in self.run.groups}
        if not names & set(self.rules.names):
            raise ValueError(
                "The group rules have not reached the optimizer. Give the callback to Trainer(callbacks=[...]), or "
                "build it with trainer=trainer, before train(); a Trainer of your own must build its optimizer in "
                f"create_optimizer. It steps with {type(inner).__name__}."
            )
        if state.global_step > 0:
            self._say_what_the_checkpoint_changes()

    def _say_what_the_checkpoint_changes(self) -> None:
        """Loading an optimizer's state replaces its groups' settings by the checkpoint's."""
        for given, group in zip(self._given, self.run.groups, strict=True):
            now = _settings(group)
            changed = [key for key in given if key in now and now[key] != given[key]]
            if changed:
                kept, wanted = (", ".join(f"{key}={values[key]}" for key in changed) for values in (now, given))
                warnings.warn(
                    f"Group {given[NAME]!r} goes on with the checkpoint's {kept}, where the rules would have {wanted}. "
                    "To change settings, start a new run from the checkpoint's weights.",
                    stacklevel=3,
                )
                return


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    """What rules write and neither a scheduler nor a callback moves afterwards."""
    settings = {NAME: group.get(NAME), "lr": group.get("initial_lr", group.get("lr"))}
    settings |= {key: group.get(f"initial_{key}", group.get(key)) for key in ("weight_decay", "p")}
    return {key: value for key, value in settings.items() if key == NAME or isinstance(value, (int, float))}
