"""`PTargetCallback`: p follows a wanted allocation or size of the update."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import TrainerState, TrainingArguments

from hf_pdyn.callbacks.base import PINNED_BY_CALLBACK
from hf_pdyn.callbacks.deciding import DecidingCallback, config_of
from hf_pdyn.callbacks.memory import check_remembered
from hf_pdyn.common.checkpoint_state import damaged
from hf_pdyn.common.errors import shortened
from hf_pdyn.common.never_fatal import attempted, never_fatal
from hf_pdyn.common.numbers import is_number
from hf_pdyn.grouping import how_to_train_bias_like, select
from hf_pdyn.integrations.transformers import processes_train_apart
from hf_pdyn.measure.power_moments import PowerMomentsReader
from hf_pdyn.measure.step_statistics import StepStatistics
from hf_pdyn.measure.windows import Scope
from hf_pdyn.policy.algorithm1 import ControlConfig
from hf_pdyn.policy.allocation_curve import PowerMoments
from hf_pdyn.policy.targets import Part, Target, solve, value_at
from hf_pdyn.tensors.sharding import agreed

logger = logging.getLogger(__name__)

_METRICS = ("p", "wanted", "found", "expected")


class PTargetCallback(DecidingCallback):
    """Moves `p` of a `Padam` so that the update has a wanted allocation or size (ours).

    At the end of every interval it solves for p on the allocation curve of that step (`policy.targets`), within the
    limits and by at most `p_step`. The next training record has the last decision as `pdyn/target/...`: `p` from then
    on, the value that is `wanted`, the one that was `found` and the one that is `expected` at the new p.

    Args:
        target: a `Target` or its text, such as "update_ratio=6", "bias_share=0.1", "lr_factor=2"; with "hold" the
            value that the update has at the first decision after the learning rate's warm-up.
        config: p_min, p_max and p_step; its threshold is Algorithm 1's.
        label: the pathway or component whose p moves, such as "norm", while the others keep theirs; None is every
            group without a p of its own. A label's groups count as set by label: no schedule touches them.
        interval, trainer: see `DecidingCallback`.

    Example:
        >>> half = PTargetCallback("lr_factor=1", interval=2)  # raw updates of the size of Adam's: p = 1/2
        >>> trainer = Trainer(model, args, train_dataset=data, callbacks=[half])
        >>> result = trainer.train()
        >>> trainer.optimizer.param_groups[0]["p"]
        0.5
    """

    memory_name = "target"
    controller = "Control by target"
    without_memory = "Control by target starts, from the checkpoint's p,"

    def __init__(
        self,
        target: Target | str,
        config: ControlConfig | None = None,
        label: str | None = None,
        interval: int | str = "auto",
        *,
        trainer: Any | None = None,
    ) -> None:
        super().__init__(interval, trainer=trainer)
        if not isinstance(target, (Target, str)):
            raise ValueError(f'A target must be a text such as "update_ratio=6", or a Target, got {target!r}.')
        self.target = Target.parse(target) if isinstance(target, str) else target
        self.config = config_of(config)
        self.label = label

    def begin(self, args: TrainingArguments, state: TrainerState) -> None:
        self.gave_up = False
        self._wanted = self.target.value
        self._unlogged: dict[str, float] = {}
        self._warmup_steps = args.get_warmup_steps(self.run.total_steps)
        self.check_padam()
        self.claim(state, "p", self.label)
        self.keep_initial(state, "p")
        if self.label is not None:
            for group in select(self.run.groups, self.label):
                group["p_pinned"] = group.get("p_pinned") or PINNED_BY_CALLBACK
        self.config.check_start(self._groups()[0]["p"])
        self._check_labels_have_one_p()
        if processes_train_apart(self._trainer):
            raise ValueError(
                "Control by target steers one training, and the processes of this launch do not average their "
                "gradients. Call no evaluate() before train(), use eval_on_start; or leave p_control off."
            )
        self._statistics = StepStatistics.of(self.run.optimizer, self.run.model)
        if self._statistics.unavailable:
            raise ValueError(
                f"Control by target cannot read the moments: {self._statistics.unavailable}, or leave p_control off."
            )
        if self.target.quantity != "lr_factor" and self._statistics.pathways != {"weight", "bias_like"}:
            raise ValueError(
                f"{self.target.quantity} compares the updates of weights and of bias-like parameters; this run trains "
                f"only {', '.join(sorted(self._statistics.pathways)) or 'unlabelled'} parameters. With LoRA, train "
                f"{how_to_train_bias_like(self.run.model)} too; or leave p_control off."
            )
        self._reader = PowerMomentsReader(self._statistics, per_layer=False)
        self.resolve_interval(state)

    @property
    def _of(self) -> str:
        """What is steered, by what."""
        return f"{self.target.quantity} by p{'' if self.label is None else f' of {self.label}'}"

    def _groups(self) -> list[dict[str, Any]]:
        if self.label is not None:
            return select(self.run.groups, self.label)
        return self.free_groups()

    def _check_labels_have_one_p(self) -> None:
        """ValueError where a label's groups differ in p or in whether it moves: moments are read by label."""
        moved = {id(group) for group in self._groups()}
        exponents: dict[tuple[str, str], set[float | None]] = {}
        for group in self.run.groups:
            if "pathway" in group:
                own = None if id(group) in moved else group["p"]
                exponents.setdefault((group["pathway"], group["component"]), set()).add(own)
        for (pathway, component), found in exponents.items():
            if len(found) > 1:
                raise ValueError(
                    f"Control by target needs one p for all groups of a label, got several for {pathway}/{component}: "
                    "a group rule sets the p of some of its parameters. Give the rule the whole label, or leave "
                    "p_control off."
                )

    def stop_measuring(self) -> None:
        """Decisions go by what rank 0 reads; all processes come to them still."""

    def decide(self, state: TrainerState) -> None:
        """Solve for p on this step's curve, on the main process's word; all processes come to it."""
        parts = self._parts()
        decision = self._decision(parts, state) if parts is not None else None
        found = agreed(decision or [math.nan] * len(_METRICS), self.run.device)
        if not all(map(math.isfinite, found)):
            return
        self._unlogged = {f"pdyn/target/{name}": value for name, value in zip(_METRICS, found, strict=True)}
        p, wanted, before, expected = found
        self._wanted = wanted
        logger.info(
            "step %d: %s wants %.4g, the update has %.4g; p %.4g, where it has %.4g",
            *(state.global_step, self.target.quantity, wanted, before, p, expected),
        )
        for group in self._groups():
            group["p"] = p

    def _parts(self) -> list[Part] | None:
        """The labels' moments; None where they cannot be read. Sharded parameters need every process here."""
        return attempted(self, lambda: self._with_exponents(self._reader.read().moments))

    def _with_exponents(self, moments: Mapping[Scope, PowerMoments]) -> list[Part]:
        if any("pathway" not in group for group in self.run.groups):  # one p, as no label can have its own
            return [Part(scope.pathway, found) for scope, found in moments.items() if scope.component is None]
        moved = {id(group) for group in self._groups()}
        fixed = {
            (group["pathway"], group["component"]): None if id(group) in moved else group["p"]
            for group in self.run.groups  # a label's groups are alike
        }
        return [
            Part(scope.pathway, found, fixed[scope.pathway, scope.component])
            for scope, found in moments.items()
            if scope.component is not None
        ]

    @never_fatal
    def _decision(self, parts: Sequence[Part], state: TrainerState) -> list[float] | None:
        """The values of _METRICS; None where nothing is decided."""
        p = self._groups()[0]["p"]
        quantity, config = self.target.quantity, self.config
        now = value_at(quantity, parts, p)
        if self._wanted is None and state.global_step < self._warmup_steps:
            return None
        wanted = now if self._wanted is None else self._wanted
        low, high = max(config.p_min, p - config.p_step), min(config.p_max, p + config.p_step)
        new_p = solve(quantity, wanted, parts, p=p, low=low, high=high)
        return [new_p, wanted, now, value_at(quantity, parts, new_p)]

    def metrics(self, state: TrainerState) -> dict[str, float]:
        unlogged, self._unlogged = self._unlogged, {}
        return unlogged

    def remember(self) -> dict[str, Any]:
        return {"of": self._of, "wanted": self._wanted, "steps": self._steps, "unlogged": self._unlogged}

    def recall(self, memory: object) -> None:
        found = check_remembered(memory, ("of", "wanted", "steps", "unlogged"), "The target state")
        if found["of"] != self._of:
            warnings.warn(
                f"The run that wrote this checkpoint steered {shortened(str(found['of']))}, this one {self._of!r}, and "
                "begins anew with that.",
                stacklevel=2,
            )
            return
        wanted, unlogged = found["wanted"], found["unlogged"]
        if wanted is not None and not (is_number(wanted) and wanted > 0):
            raise damaged(f"The wanted value must be a number > 0, got {shortened(str(wanted))}")
        if type(found["steps"]) is not int or found["steps"] < 0:
            raise damaged(f"The steps of an interval must be a count, got {shortened(str(found['steps']))}")
        known = {f"pdyn/target/{name}" for name in _METRICS}
        if not isinstance(unlogged, dict) or unlogged.keys() - known or not all(map(is_number, unlogged.values())):
            raise damaged(f"The target state must hold finite numbers by metric, got {shortened(str(unlogged))}")
        if self.target.value is not None and wanted != self.target.value:
            warnings.warn(
                f"The run that wrote this checkpoint wanted {self.target.quantity} of {wanted}, this one "
                f"{self.target.value:g}, which holds from here on.",
                stacklevel=2,
            )
            wanted = self.target.value
        self._wanted, self._steps, self._unlogged = wanted, found["steps"], unlogged
