"""`TelemetryCallback`: how the training signal is split, in every log record."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_pdyn.callbacks.memory import check_remembered
from hf_pdyn.callbacks.remembering import RememberingCallback
from hf_pdyn.callbacks.row_buffer import RowBuffer
from hf_pdyn.common.checkpoint_state import damaged
from hf_pdyn.common.errors import shortened
from hf_pdyn.common.never_fatal import attempted, never_fatal
from hf_pdyn.common.numbers import is_count, is_number
from hf_pdyn.grouping import COMPONENTS, NAME, PATHWAYS
from hf_pdyn.integrations.accelerate import unwrap_optimizer
from hf_pdyn.measure.implicit_bias import why_no_coefficient
from hf_pdyn.measure.mirror_time import MirrorClock, why_no_time
from hf_pdyn.measure.step_statistics import StepStatistics
from hf_pdyn.measure.windows import QUANTITIES, Reading, Scope, Window
from hf_pdyn.optim.step_work import group_lr
from hf_pdyn.policy.row_budget import RowPlan, plan_rows
from hf_pdyn.run_dir.tables import LAYERS

logger = logging.getLogger(__name__)

_WHY_MISSING = {
    "v_hat_mean": "keeps no second moment of its gradients that can be read",
    "N_p": "has no exponent p",
}

_BY_LABEL, _BY_GROUP = "pdyn/by_label", "pdyn/by_group"
"""Where the metrics of single labels, and of a user's named groups, stand."""


class TelemetryCallback(RememberingCallback):
    """Adds `pdyn/...` metrics to every training log record, with any torch optimizer.

    `pdyn/steps` is how many optimizer steps the record covers: fewer in a run's last record, and in the first
    with `logging_first_step`. Means over these steps: `pdyn/D_w` and `pdyn/D_b` (gradient norms before clipping,
    IAD Eq. 31), `pdyn/D_w_clipped`, `pdyn/D_b_clipped`, `pdyn/G_w_over_G_b`. Means over its measured steps, each
    `/weight` and `/bias_like`: `pdyn/update_norm` (and `pdyn/update_ratio`), `pdyn/param_norm`,
    `pdyn/v_hat_mean`, `pdyn/one_norm`, `pdyn/N_p`, `pdyn/implicit_bias` (the coefficient of N_p: penalised where
    positive, protected where negative; see `measure.implicit_bias`), `pdyn/eps_share` (the mean of
    eps / (v_hat + eps): near 1, eps rules the denominator and p is a learning rate). Computed from these means:
    `pdyn/G_w_over_G_b_invariant` (in which the growth of scale-invariant weights does not show), and
    `pdyn/by_label/weight/attention/grad_share` and `.../update_share`, the part that each component has of the squared
    norm of the whole gradient or update. Every named group has `pdyn/by_group/NAME/grad_norm`, `grad_share`,
    `update_share`, and its `lr`, `weight_decay` and `p` (the largest, where they differ). The last step's settings are
    `pdyn/p` and `pdyn/weight_decay`. Counted since the start: `pdyn/a_t` (the time variable of time-dependent mirror
    flows, see `mirror_time`), `pdyn/skipped_steps`, `pdyn/nonfinite_steps`. Where groups differ, p is the one that
    control and schedules move, weight_decay and a_t are those of the group that decays most.

    Args:
        every: measure the costlier quantities every so many steps; None measures the step that
            completes a logging interval, and the last step.
        per_layer: every mean also by layer, as rows of `tables.LAYERS` in the output directory; and p,
            weight_decay and a_t also by label, as `pdyn/by_label/weight/p` and
            `pdyn/by_label/weight/attention/p`, where the optimizer's groups are labelled.
        trainer: see `PdynCallback`.

    Example:
        >>> trainer = Trainer(model, args, train_dataset=data, callbacks=[TelemetryCallback()])
        >>> result = trainer.train()
        >>> [name for name in trainer.state.log_history[0] if name.startswith("pdyn/D_")]
        ['pdyn/D_w', 'pdyn/D_b', 'pdyn/D_w_clipped', 'pdyn/D_b_clipped']
    """

    memory_name = "telemetry"
    without_memory = "Its means, a_t and the counts of skipped and non-finite steps start"

    def __init__(self, every: int | None = None, per_layer: bool = False, *, trainer: Any | None = None) -> None:
        super().__init__(trainer=trainer)
        if every is not None and not (is_count(every) and every >= 1):
            raise ValueError(f"every must be at least 1 optimizer step, got {every!r}.")
        self.every = every
        self.per_layer = per_layer
        self.row_buffer = RowBuffer(LAYERS) if per_layer else None
        self._window: Window | None = None

    def begin(self, args: TrainingArguments, state: TrainerState) -> None:
        self.gave_up = False
        self._window = None
        self._skipped_steps = self._logged_skips = 0
        self._nonfinite_steps = 0
        self._covered_until = state.global_step
        self._clock = MirrorClock(_by_label(self.run.groups))
        self._a_t_ended = self._said_missing = False
        self._settings: dict[str, float] = {}
        self._plan: RowPlan | None = None
        self._start_measuring()
        self._say_what_is_limited(args, state)
        reason = next(filter(None, map(self._why_no_coefficient, self.run.groups)), None)
        if reason is not None and state.is_world_process_zero:
            logger.warning("pdyn/implicit_bias is left out: %s.", reason)

    def _why_no_coefficient(self, group: dict[str, Any]) -> str | None:
        return why_no_coefficient(unwrap_optimizer(self.run.optimizer), group)

    @never_fatal
    def _start_measuring(self) -> None:
        self._statistics = StepStatistics.of(self.run.optimizer, self.run.model)
        self._window = self._statistics.window()

    def _say_what_is_limited(self, args: TrainingArguments, state: TrainerState) -> None:
        """Plan the rows of layers; say once where a run of so many layers or records would have too many."""
        if self._window is None:
            return
        said = []
        if self._statistics.joined_layers:
            said = [f"{self._statistics.joined_layers}; pdyn/G_w_over_G_b_invariant, which needs them all, is left out"]
        if self.row_buffer is not None:
            rows = sum(scope.layer is not None for scope in self._statistics.scopes) * (1 + len(QUANTITIES))
            interval = self.run.logging_interval(args, state)
            self._plan = plan_rows(rows, interval=interval, total_steps=self.run.total_steps)
            if self._plan.thinned:
                said.append(f"rows of layers are kept of {self._plan.thinned}, and of the last: {rows:,} each")
        if said and state.is_world_process_zero:
            logger.warning("pdyn telemetry is limited: %s.", "; ".join(said))

    def stop_measuring(self) -> None:
        """Log nothing from here on. Where parameters are sharded the window stays: others wait for its part."""
        if self._window is not None and not self._statistics.sharded:
            self._window = None

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        super().on_train_end(args, state, control, **kwargs)
        self._window = None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        every = self.every or self.run.logging_interval(args, state)
        first = state.global_step == 0 and args.logging_first_step
        last = self.every is None and state.global_step + 1 == self.run.total_steps  # of the closing record
        if self._window is not None and (first or last or (state.global_step + 1) % every == 0):
            self._statistics.measure_next_step()

    @never_fatal
    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        optimizer = unwrap_optimizer(self.run.optimizer)
        if optimizer is not self.run.optimizer and getattr(self.run.optimizer, "step_was_skipped", False):
            self._skipped_steps += 1
            return
        if getattr(optimizer, "step_was_skipped", False):
            self._skipped_steps += 1
            self._count_nonfinite(1)
            return
        labelled = _by_label(self.run.groups)
        self._settings = {}
        for label, groups in labelled.items():
            decay = max(float(group.get("weight_decay", 0.0)) for group in groups)
            self._settings[_metric("weight_decay", label)] = decay
            if "p" in groups[0]:
                free = [group for group in groups if not group.get("p_pinned")]
                self._settings[_metric("p", label)] = (free or groups)[0]["p"]
        self._settings |= _settings_by_name(self.run.groups)
        self._say_if_a_t_ends(optimizer)
        self._clock.take_step(optimizer, labelled, self._statistics.found_inf if self._window is not None else None)

    def _say_if_a_t_ends(self, optimizer: Optimizer) -> None:
        reason = next(filter(None, (why_no_time(optimizer, group) for group in self.run.groups)), None)
        if reason is not None and not self._a_t_ended:
            logger.warning("pdyn/a_t is left out from here on: %s.", reason)
            self._a_t_ended = True

    def _count_nonfinite(self, steps: int) -> None:
        if steps and not self._nonfinite_steps:
            logger.warning(
                "A gradient held NaN or infinity. Such steps are left out of the metrics and counted in "
                "pdyn/nonfinite_steps; --nonfinite skip has padam leave them out too."
            )
        self._nonfinite_steps += steps

    def metrics(self, state: TrainerState) -> dict[str, float] | None:
        return self._metrics(state, attempted(self, self._window.read) if self._window else None)

    @never_fatal
    def _metrics(self, state: TrainerState, reading: Reading | None) -> dict[str, float] | None:
        self._skipped_steps += self._clock.settle()
        # A record of skipped steps alone has nothing but their count, and that one is wanted.
        if self._window is None or not (reading or self._skipped_steps > self._logged_skips):
            return None
        self._logged_skips = self._skipped_steps
        collected: dict[str, float] = {}
        if reading:
            self._count_nonfinite(reading.nonfinite_steps)
            self._say_what_is_missing(reading, state)
            collected = _global_metrics(reading, layers_joined=self._statistics.joined_layers is not None)
            if self.row_buffer is not None and (self._plan is None or self._plan.takes(state.global_step)):
                self.row_buffer.add(state, _layer_rows(reading))
        settings = self._settings | {_metric("a_t", label): value for label, value in self._times().items()}
        by_label = {name for name in settings if name.startswith(f"{_BY_LABEL}/")}
        collected.update({name: settings[name] for name in settings if self.per_layer or name not in by_label})
        collected["pdyn/steps"] = state.global_step - self._covered_until
        self._covered_until = state.global_step
        collected["pdyn/skipped_steps"] = self._skipped_steps
        collected["pdyn/nonfinite_steps"] = self._nonfinite_steps
        return collected

    def _say_what_is_missing(self, reading: Reading, state: TrainerState) -> None:
        if self._said_missing or not reading.measured_steps or not state.is_world_process_zero:
            return
        self._said_missing = True
        name = type(unwrap_optimizer(self.run.optimizer)).__name__
        for quantity, reason in _WHY_MISSING.items():
            if not reading.quantities.get(quantity):
                logger.warning("pdyn/%s is left out: %s %s.", quantity, name, reason)

    def _times(self) -> dict[str, float]:
        """a_t of every label that has one."""
        return {label: value for label, value in self._clock.times.items() if not math.isnan(value)}

    def remember(self) -> dict[str, Any] | None:
        return self._remember(attempted(self, self._window.state_dict) if self._window is not None else None)

    @never_fatal
    def _remember(self, window: dict[str, Any] | None) -> dict[str, Any] | None:
        self._skipped_steps += self._clock.settle()
        return {
            "window": window,
            "covered_until": self._covered_until,
            "skipped_steps": self._skipped_steps,
            "nonfinite_steps": self._nonfinite_steps,
            "cumulative_decay": self._times(),
        }

    def recall(self, memory: object) -> None:
        try:
            found = _check_memory(memory)
        except ValueError as error:
            self.say_what_starts_anew(error)
            return
        if self._window is not None and found["window"] is not None:
            try:
                self._window.load_state_dict(found["window"])
                self._covered_until = found["covered_until"]
            except ValueError as error:
                warnings.warn(
                    f"{error} Until the next record, means are over the steps since the resume.", stacklevel=2
                )
        self._skipped_steps = self._logged_skips = found["skipped_steps"]
        self._nonfinite_steps = found["nonfinite_steps"]
        self._clock.times = dict.fromkeys(self._clock.times, math.nan) | found["cumulative_decay"]


def _check_memory(memory: object) -> dict[str, Any]:
    """`memory`, but for its window; ValueError unless `_remember` can have returned it."""
    found = check_remembered(
        memory,
        ("window", "covered_until", "skipped_steps", "nonfinite_steps", "cumulative_decay"),
        "The telemetry state",
    )
    for name in ("covered_until", "skipped_steps", "nonfinite_steps"):
        if not is_count(found[name]):
            raise damaged(f"{name} must be a whole number >= 0, got {shortened(str(found[name]))}")
    if found["covered_until"] > found["step"]:
        raise damaged(f"covered_until must not be beyond step {found['step']}, got {found['covered_until']}")
    decay = found["cumulative_decay"]
    if not isinstance(decay, dict) or not decay.keys() <= _LABEL_NAMES or not all(map(is_number, decay.values())):
        raise damaged(f"cumulative_decay must hold a finite number by label, got {shortened(str(decay))}")
    return found


def _global_metrics(reading: Reading, *, layers_joined: bool) -> dict[str, float]:
    weight, bias_like = Scope("weight"), Scope("bias_like")
    metrics: dict[str, float] = {}
    for symbol, norms in (("", reading.grad_norm), ("_clipped", reading.grad_norm_clipped)):
        for letter, scope in (("w", weight), ("b", bias_like)):
            if scope in norms:
                metrics[f"pdyn/D_{letter}{symbol}"] = norms[scope]
    if reading.weight_norm is not None and reading.bias_norm:
        metrics["pdyn/G_w_over_G_b"] = reading.weight_norm / reading.bias_norm
    for name in QUANTITIES:
        for scope in (weight, bias_like):
            value = reading.quantities.get(name, {}).get(scope)
            if value is not None:
                metrics[f"pdyn/{name}/{scope.pathway}"] = value
    updates = reading.quantities.get("update_norm", {})
    if weight in updates and updates.get(bias_like):
        metrics["pdyn/update_ratio"] = updates[weight] / updates[bias_like]
    invariant = None if layers_joined else _invariant_ratio(reading)
    if invariant is not None:
        metrics["pdyn/G_w_over_G_b_invariant"] = invariant
    for name, norms in (("grad_share", reading.grad_norm), ("update_share", updates)):
        metrics |= {_metric(name, label): share for label, share in _shares(norms).items()}
    return metrics | _metrics_by_name(reading.grad_norm, updates)


def _metrics_by_name(gradients: Mapping[Scope, float], updates: Mapping[Scope, float]) -> dict[str, float]:
    """The gradient norm of every named group, and its part of the squared norm of the whole gradient and update."""
    metrics = {}
    for of, norms in (("grad", gradients), ("update", updates)):
        squares: dict[str, float] = {}
        for scope, norm in norms.items():
            if scope.group is not None:
                squares[scope.group] = squares.get(scope.group, 0.0) + norm**2
        whole = sum(norms.get(Scope(pathway), 0.0) ** 2 for pathway in PATHWAYS)
        for name, square in squares.items():
            if of == "grad":
                metrics[f"{_BY_GROUP}/{name}/grad_norm"] = math.sqrt(square)
            if whole > 0:
                metrics[f"{_BY_GROUP}/{name}/{of}_share"] = square / whole
    return metrics


def _settings_by_name(groups: list[dict[str, Any]]) -> dict[str, float]:
    """The largest learning rate, weight decay and p of every named group, by metric."""
    found: dict[str, float] = {}
    for group in groups:
        if NAME not in group:
            continue
        for field in ("lr", "weight_decay", "p"):
            # A tensor that holds a learning rate on the CPU costs nothing to read; one on a device waits.
            value = group_lr(group) if field == "lr" and group.get("lr") is not None else group.get(field)
            if value is not None and not isinstance(value, Tensor):
                metric = f"{_BY_GROUP}/{group[NAME]}/{field}"
                found[metric] = max(float(value), found.get(metric, -math.inf))
    return found


def _invariant_ratio(reading: Reading) -> float | None:
    """sqrt(sum_l ||w_l||^2 ||g_l||^2) / D_b over the weights of layers l; None where a factor is missing.

    Weights before a normalisation are scale-invariant: their gradient goes as 1 / ||w||, so that G_w / G_b falls where
    ||w|| has grown, and this does not (ours). With LoRA, w is the adapter's factor.
    """
    norms = reading.quantities.get("param_norm", {})
    layers = [scope for scope in reading.grad_norm if scope.layer is not None and scope.pathway == "weight"]
    if not layers or not reading.bias_norm or any(scope not in norms for scope in layers):
        return None
    return math.hypot(*(norms[scope] * reading.grad_norm[scope] for scope in layers)) / reading.bias_norm


def _shares(norms: Mapping[Scope, float]) -> dict[str, float]:
    """The part of the squared norm of everything that each component of a pathway has, by label."""
    squares = {
        f"{scope.pathway}/{scope.component}": norm**2 for scope, norm in norms.items() if scope.component is not None
    }
    total = sum(squares.values())
    return {label: square / total for label, square in squares.items()} if total > 0 else {}


def _layer_rows(reading: Reading) -> list[dict[str, Any]]:
    return [
        {"layer": scope.layer or "(model)", "part": scope.pathway, "name": name, "value": value}
        for name, values in (("grad_norm", reading.grad_norm), *reading.quantities.items())
        for scope, value in values.items()
        if scope.layer is not None and math.isfinite(value)
    ]


def _by_label(groups: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The groups of each of `_LABEL_NAMES` that has any: all, those of a pathway, and those of a full label."""
    found: dict[str, list[dict[str, Any]]] = {"": groups}
    for group in groups:
        if "pathway" in group:
            found.setdefault(group["pathway"], []).append(group)
            found.setdefault(f"{group['pathway']}/{group['component']}", []).append(group)
    return found


_LABEL_NAMES = {"", *PATHWAYS, *(f"{pathway}/{component}" for pathway in PATHWAYS for component in COMPONENTS)}


def _metric(name: str, label: str) -> str:
    """Its name in a log record. None is the beginning of another's path: file stores make folders of them."""
    return f"{_BY_LABEL}/{label}/{name}" if label else f"pdyn/{name}"
