"""`PdynArguments`: the plugin's options for an HfArgumentParser, and the callbacks they stand for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import NamedTuple, get_args

from transformers import TrainerCallback, TrainingArguments

from hf_pdyn.callbacks import (
    AllocationCallback,
    FindingsCallback,
    GroupRulesCallback,
    LearningRateScheduleCallback,
    NonfiniteCallback,
    PControlCallback,
    PTargetCallback,
    SampleLossCallback,
    ScheduleCallback,
    SpectralCallback,
    TelemetryCallback,
    WeightDecayShutoffCallback,
)
from hf_pdyn.callbacks.lr_schedule import LR_FIELDS
from hf_pdyn.common.errors import check_choice
from hf_pdyn.common.numbers import is_count, is_number
from hf_pdyn.frontend.optim_args import OptimArgs, parse_optim_args
from hf_pdyn.frontend.registration import OPTIMIZER_NAME
from hf_pdyn.frontend.trainer_padam import DEFAULT_P
from hf_pdyn.grouping import COMPONENTS, PATHWAYS
from hf_pdyn.optim.hyperparameters import Nonfinite
from hf_pdyn.policy.algorithm1 import ControlConfig
from hf_pdyn.policy.decay_targets import DecayTarget, moment_or_target
from hf_pdyn.policy.group_rules import GroupRules
from hf_pdyn.policy.intervals import parse_interval
from hf_pdyn.policy.schedules import Schedule

_TELEMETRY = ("none", "global", "layers")
_P_CONTROL = ("none", "gradient", "target")


class Leader(NamedTuple):
    """An option that gives others their meaning: its value when it is off, how to set it, and the others."""

    off: object
    example: str
    companions: tuple[str, ...]


LEADERS = {
    "p_control": Leader(
        "none",
        "--p_control gradient",
        ("p_min", "p_max", "p_step", "p_threshold", "p_interval"),
    ),
    "wd_off": Leader(None, "--wd_off 0.5", ("wd_on", "wd_off_labels")),
    "sample_losses": Leader(0, "--sample_losses 1000", ("sample_losses_test",)),
    "telemetry": Leader("none", "--telemetry global", ("telemetry_every",)),
}
"""By name; a companion that is given while its leader is off is an error."""


@dataclass
class PdynArguments:
    """What to watch and steer. Moments of training: 200 (steps), 0.5 (fraction), epoch:2.

    Example:
        >>> ours = PdynArguments(p_control="gradient", wd_off="0.5")
        >>> [type(callback).__name__ for callback in ours.callbacks()][:2]
        ['WeightDecayShutoffCallback', 'PControlCallback']
    """

    telemetry: str = field(
        default="global",
        metadata={"help": "pdyn/ metrics in every log record: none, global, or layers (also for every layer)."},
    )
    telemetry_every: int | None = field(
        default=None,
        metadata={
            "help": "Take update norms, second moments and N_p every so many steps (default: once a log record)."
        },
    )
    allocation: str | None = field(
        default=None,
        metadata={
            "help": "How often to measure what every p would make of the current moments: none, log (every record), a "
            "number of optimizer steps, or auto (every record that takes no more than a hundredth of the time; the "
            "default with telemetry)."
        },
    )
    spectra: str = field(
        default="none",
        metadata={
            "help": "How often nuclear / Frobenius norm and ranks of attention's K^T Q and LoRA's B A are measured: "
            "none, epoch, or a number of optimizer steps."
        },
    )
    p_control: str = field(
        default="none",
        metadata={
            "help": "gradient: Algorithm 1 moves p by the gradients of weights and biases. target: p follows p_target."
        },
    )
    p_target: str | None = field(
        default=None,
        metadata={
            "help": "What the update shall have: update_ratio=6 (weight over bias-like norm), bias_share=0.1 (of the "
            "squared norm), lr_factor=2 (Adam's size over its own); =hold keeps the value at the end of warm-up."
        },
    )
    p_target_label: str | None = field(
        default=None, metadata={"help": "The pathway or component whose p alone follows p_target, such as norm."}
    )
    p_min: float = field(default=ControlConfig.p_min, metadata={"help": "Smallest p that control may choose."})
    p_max: float = field(default=ControlConfig.p_max, metadata={"help": "Largest p that control may choose."})
    p_step: float = field(
        default=ControlConfig.p_step, metadata={"help": "alpha_p: how far one decision moves p (target: at most)."}
    )
    p_threshold: float = field(
        default=ControlConfig.threshold,
        metadata={"help": "tau_b > 1: a D_b above this multiple of its minimum lowers p."},
    )
    p_interval: str = field(
        default="auto",
        metadata={
            "help": "How often control decides: auto (about 20 times a training, at least 10 steps apart), epoch, or a "
            "number of optimizer steps."
        },
    )
    groups: str | None = field(
        default=None,
        metadata={
            "help": "A YAML file of rules that give parameters groups of their own by name, with any optimizer: name, "
            "match (a regex), and lr, lr_mult, weight_decay, p, layer or a schedule of these."
        },
    )
    p_schedule: str | None = field(
        default=None,
        metadata={"help": "p over training: linear:0.45..0.35, cosine:0.6..0.5@0.2..0.8, step:0.5,0.4@0.5."},
    )
    schedule: list[str] | None = field(
        default=None,
        metadata={
            "help": "FIELD[.LABEL]=SCHEDULE for other group fields: weight_decay.attention=cosine:0.1..0; with a label "
            "or the name of a group also lr_mult and lr."
        },
    )
    wd_off: str | None = field(
        default=None,
        metadata={
            "help": "Weight decay is off from here on: 0.5, 200 or epoch:2; or once it has brought a_t down to -0.05 "
            "(a_t=-0.05), or the ratio of norms that --spectra measures to 2.5 (lora/nuc_over_fro=2.5, "
            "attention/..., attention_heads/...)."
        },
    )
    wd_on: str | None = field(
        default=None, metadata={"help": "Weight decay is on again from here: 0.8, 300 or epoch:3."}
    )
    wd_off_labels: list[str] | None = field(
        default=None, metadata={"help": "Pathways or components whose decay is switched off (default: all)."}
    )

    nonfinite: str = field(
        default="apply",
        metadata={"help": "skip: padam leaves out a step whose gradients hold NaN or infinity, with no scaler too."},
    )

    sample_losses: int = field(
        default=0,
        metadata={"help": "After every epoch, record the loss of N training samples and of the test set (0: off)."},
    )
    sample_losses_test: int | None = field(
        default=None, metadata={"help": "Of the test set, record N samples only (default: all)."}
    )

    def __post_init__(self) -> None:
        """Raise ValueError for options that cannot be meant, before anything is built."""
        check_choice("telemetry", self.telemetry, _TELEMETRY)
        check_choice("p_control", self.p_control, _P_CONTROL)
        check_choice("nonfinite", self.nonfinite, get_args(Nonfinite))
        self._check_companions()
        if self.telemetry_every is not None and not (is_count(self.telemetry_every) and self.telemetry_every >= 1):
            raise ValueError(f"telemetry_every must be at least 1 optimizer step, got {self.telemetry_every!r}.")
        for name in ("sample_losses", "sample_losses_test"):
            count = getattr(self, name)
            if count is not None and not is_count(count):
                raise ValueError(f"{name} must be a number of samples >= 0, got {count!r}.")
        if isinstance(self.wd_off_labels, str):  # in the YAML of axolotl or in Python
            self.wd_off_labels = [self.wd_off_labels]
        for label in self.wd_off_labels or ():
            check_choice("wd_off_labels", label, (*PATHWAYS, *COMPONENTS))
        self._check_target()
        self._rules = self._read_rules()
        # Of single labels, the callbacks find out once the labels are there.
        moved = [scheduled.field for scheduled in self._schedules() if scheduled.label is None]
        if self.p_control != "none" and self.p_target_label is None and "p" in moved:
            raise ValueError(
                "p_control and a schedule of p would both write p. Drop one of --p_control and --p_schedule."
            )
        if self.wd_off is not None and not self.wd_off_labels and "weight_decay" in moved:
            raise ValueError(
                "wd_off and a schedule of weight_decay would both write it. Write the shutoff into the schedule "
                "(step:0.1,0@0.5), or drop one of them."
            )
        target = None if self.wd_off is None else moment_or_target(self.wd_off)
        if isinstance(target, DecayTarget) and target.product is not None and self.spectra == "none":
            raise ValueError(
                f"wd_off={target} waits for a ratio that spectra measure, and they are off. Set --spectra 50 too, or "
                "name a moment or a_t."
            )
        self.callbacks()

    def check(self, args: TrainingArguments) -> None:
        """Raise ValueError for what cannot be meant beside `args`, before a model is loaded.

        What needs the model or the length of training is checked when training begins.
        """
        is_padam = args.optim == OPTIMIZER_NAME
        optim_args = parse_optim_args(args.optim_args) if is_padam else OptimArgs()
        moves_p = self.p_control != "none" or any(scheduled.field == "p" for scheduled in self._schedules())
        if moves_p and not is_padam:
            raise ValueError(
                "p_control and schedules of p move the exponent of Padam, got "
                f"optim={getattr(args.optim, 'value', args.optim)!r}. Set --optim padam, or drop them."
            )
        if self.nonfinite != "apply" and not is_padam:
            raise ValueError(
                "nonfinite says what Padam does with a step, got "
                f"optim={getattr(args.optim, 'value', args.optim)!r}. Set --optim padam, or drop it."
            )
        if self.p_control != "none" and self.p_target_label is None:
            self._control_config().check_start(optim_args.settings.get("p", DEFAULT_P))
        if not is_number(args.weight_decay):
            raise ValueError(f"weight_decay must be a number >= 0, got {args.weight_decay!r}. The default is 0.")
        decays = args.weight_decay > 0 or any(override.field == "weight_decay" for override in optim_args.overrides)
        decays = decays or any(rule.weight_decay for rule in self._rules or ())
        if self.wd_off is not None and not decays:
            raise ValueError("wd_off has nothing to switch off: weight_decay is 0. Set --weight_decay, or drop it.")

    def callbacks(self) -> list[TrainerCallback]:
        """Fresh callbacks for one Trainer."""
        callbacks: list[TrainerCallback] = [] if self._rules is None else [GroupRulesCallback(self._rules)]
        callbacks += self._schedules()
        if self.wd_off is not None:
            callbacks.append(WeightDecayShutoffCallback(self.wd_off, self.wd_on, self.wd_off_labels))
        if self.nonfinite == "skip":
            callbacks.append(NonfiniteCallback("skip"))
        if self.p_control == "gradient":
            interval = parse_interval("p_interval", self.p_interval, "auto", "epoch")
            callbacks.append(PControlCallback(self._control_config(), interval))
        if self.p_control == "target" and self.p_target is not None:
            interval = parse_interval("p_interval", self.p_interval, "auto", "epoch")
            label = self.p_target_label
            callbacks.append(PTargetCallback(self.p_target, self._control_config(), label, interval))
        if self.telemetry != "none":
            callbacks.append(TelemetryCallback(self.telemetry_every, per_layer=self.telemetry == "layers"))
        allocation = self.allocation or ("auto" if self.telemetry != "none" else "none")
        if allocation != "none":
            every = parse_interval("allocation", allocation, "none", "auto", "log")
            callbacks.append(AllocationCallback(every, per_layer=self.telemetry == "layers"))
        if self.spectra != "none":
            callbacks.append(SpectralCallback(parse_interval("spectra", self.spectra, "none", "epoch")))
        if self.sample_losses:
            callbacks.append(SampleLossCallback(self.sample_losses, self.sample_losses_test))
        if self.telemetry != "none":
            callbacks.append(FindingsCallback())
        return callbacks

    def _read_rules(self) -> GroupRules | None:
        return None if self.groups is None else GroupRules.read(self.groups)

    def _control_config(self) -> ControlConfig:
        return ControlConfig(self.p_min, self.p_max, self.p_step, self.p_threshold)

    def _schedules(self) -> list[ScheduleCallback | LearningRateScheduleCallback]:
        schedules: list[ScheduleCallback | LearningRateScheduleCallback]
        schedules = [] if self.p_schedule is None else [ScheduleCallback("p", self.p_schedule)]
        for item in [self.schedule] if isinstance(self.schedule, str) else self.schedule or ():
            key, equals, text = str(item).partition("=")
            if not equals:
                raise ValueError(f"schedule takes FIELD[.LABEL]=SCHEDULE, got {item!r}.")
            name, dot, label = key.partition(".")
            if dot:
                names = self._rules.names if self._rules else ()
                check_choice("schedule's label", label, (*PATHWAYS, *COMPONENTS, *names))
            if dot and name in LR_FIELDS:
                schedules.append(LearningRateScheduleCallback(name, Schedule.parse(text), label))
            else:
                schedules.append(ScheduleCallback(name, Schedule.parse(text), label if dot else None))
        targets = [(schedule.field, schedule.label) for schedule in schedules]
        for target in targets:
            if targets.count(target) > 1:
                raise ValueError(f"{'.'.join(filter(None, target))} has two schedules. Keep one.")
        return schedules

    def _check_target(self) -> None:
        by_target = self.p_control == "target"
        if by_target and self.p_target is None:
            raise ValueError("p_control=target needs p_target, such as --p_target update_ratio=6 or bias_share=hold.")
        given = [name for name in ("p_target", "p_target_label") if getattr(self, name) is not None]
        if given and not by_target:
            raise ValueError(
                f"{' and '.join(given)} would have no effect with p_control={self.p_control}: set --p_control target, "
                f"or drop {' and '.join(given)}."
            )
        if by_target and self.p_threshold != ControlConfig.threshold:
            raise ValueError("p_threshold would have no effect: it is Algorithm 1's. Set --p_control gradient.")
        if self.p_target_label is not None:
            check_choice("p_target_label", self.p_target_label, (*PATHWAYS, *COMPONENTS))

    def _check_companions(self) -> None:
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name, leader in LEADERS.items():
            if getattr(self, name) != leader.off:
                continue
            given = [option for option in leader.companions if getattr(self, option) != defaults[option]]
            if given:
                raise ValueError(
                    f"{', '.join(given)} would have no effect: set {leader.example} too, or drop {' and '.join(given)}."
                )
