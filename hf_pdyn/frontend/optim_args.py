r"""The grammar of `--optim_args` for `--optim padam`: comma-separated `key=value`, typed and checked.

`p`, `eps`, `update_scale`, `bias_correction`, `state_dtype`, `weight_correction`, `nonfinite`,
`decoupled_weight_decay`, `amsgrad`, `maximize`, `foreach`, `fused` and `capturable` are `Padam`'s own; `p.LABEL`,
`weight_decay.LABEL` and `lr_mult.LABEL` override one label (a pathway or a component), and
`label.REGEX=PATHWAY/COMPONENT` relabels parameters by name.

Example:
    p=0.25, update_scale=adam, p.norm=0, lr_mult.lora_B=16, label.wpe=bias_like/embedding

In a regex write `\x2c` for a comma and `\x3d` for an equals sign, since the Trainer splits at these characters:
`label.h\.[0-9]{1\x2c2}\.=weight/mlp`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from hf_pdyn.common.errors import check_choice, did_you_mean, shortened
from hf_pdyn.common.numbers import format_number, parse_number
from hf_pdyn.grouping import COMPONENTS, PATHWAYS, Label, select
from hf_pdyn.optim.hyperparameters import BiasCorrection, Nonfinite, StateDtype, UpdateScale
from hf_pdyn.policy.limits import check_limits

STEP_OPTIONS = ("foreach", "fused", "capturable")
"""Settings that say how a step is computed, not what it is."""

_LABELS = (*PATHWAYS, *COMPONENTS)

_IN_A_REGEX = r" In a regex write \x2c for a comma and \x3d for an equals sign."
_ESCAPE = re.compile(r"\\(x2c|x3d|.)")


@dataclass(frozen=True)
class Override:
    """One `FIELD.LABEL=VALUE`: `field` is p, weight_decay or lr_mult."""

    field: str
    label: str
    value: float

    def __str__(self) -> str:
        return f"{self.field}.{self.label}={format_number(self.value)}"


@dataclass(frozen=True)
class OptimArgs:
    """Parsed `optim_args`: `settings` are keyword arguments of `Padam`."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    overrides: tuple[Override, ...] = ()
    rules: tuple[tuple[str, Label], ...] = ()


def parse_optim_args(text: str | None) -> OptimArgs:
    """Read the grammar of this module.

    Raises ValueError for an item without `=`, an unknown or repeated key, a value of the wrong type or
    an unknown label; the text states what was given, what is allowed and the nearest name.
    """
    settings: dict[str, Any] = {}
    overrides: list[Override] = []
    rules: list[tuple[str, Label]] = []
    seen: set[str] = set()
    text = text or ""
    for item in text.split(","):
        if not item.strip():
            continue
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals:
            raise ValueError(
                f"optim_args must be comma-separated key=value items, got {shortened(item.strip())}."
                f"{_IN_A_REGEX if 'label.' in text else ''}"
            )
        if key in seen:
            raise ValueError(f"optim_args sets {shortened(key)} twice. Keep one.")
        seen.add(key)
        name, dot, label = key.partition(".")
        if not dot and name in _SETTINGS:
            settings[name] = _SETTINGS[name](key, value)
        elif dot and name in _OVERRIDES:
            overrides.append(Override(name, _check_label(key, label), _OVERRIDES[name](key, value)))
        elif dot and name == "label":
            rules.append((_unescaped(label), _parse_rule_label(value)))
        else:
            raise ValueError(
                f"Unknown key {shortened(key)} in optim_args. Known are {', '.join(_SETTINGS)}; per label "
                f"{', '.join(f'{known}.LABEL' for known in _OVERRIDES)} and label.REGEX."
                f"{_hint(key)} betas, epsilon, learning rate and weight decay come from TrainingArguments."
            )
    return OptimArgs(settings, tuple(overrides), tuple(rules))


def apply_overrides(groups: list[dict[str, Any]], overrides: tuple[Override, ...], *, lr: float, p: float) -> None:
    """Write per-label settings into labelled `groups`, in place.

    Afterwards every group has `lr`, `p`, and `p_pinned` and `weight_decay_pinned` (whether an override owns
    it, so that control and schedules without a label leave it alone). A component outranks a pathway,
    whatever their order: `p.norm=0` holds beside `p.bias_like=0.3`. `weight_decay.LABEL` means the label's
    weights; a label that has none (norm, bias_like) is meant as a whole.

    Raises ValueError for a label that no group carries.
    """
    for group in groups:
        group.update(lr=lr, p=p, p_pinned=False, weight_decay_pinned=False)
    for override in sorted(overrides, key=lambda override: override.label in COMPONENTS):
        try:
            chosen = select(groups, override.label)
        except ValueError as error:
            raise ValueError(f"optim_args {override}: {error}") from None
        if override.field == "weight_decay":
            chosen = [group for group in chosen if group["pathway"] == "weight"] or chosen
        for group in chosen:
            if override.field == "lr_mult":
                group["lr"] = lr * override.value
            else:
                group[override.field] = override.value
                group[f"{override.field}_pinned"] = True
    for group in groups:
        # Callbacks move these; as keys of every group from the start, they come back with a checkpoint of any launch.
        group.update(initial_p=group["p"], initial_weight_decay=group["weight_decay"])


def _number(key: str, value: str) -> float:
    try:
        number = parse_number(value)
    except ValueError:
        raise ValueError(f"optim_args {key} must be a finite number, got {shortened(value)}.") from None
    check_limits(f"optim_args {key}", key.partition(".")[0], number)
    return number


def _boolean(key: str, value: str) -> bool:
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if value.lower() not in known:
        raise ValueError(f"optim_args {key} must be true or false, got {shortened(value)}.")
    return known[value.lower()]


def _one_of(*allowed: str) -> Callable[[str, str], str]:
    def read(key: str, value: str) -> str:
        check_choice(f"optim_args {key}", value, allowed)
        return value

    return read


_SETTINGS: dict[str, Callable[[str, str], Any]] = {
    "p": _number,
    "eps": _number,
    "update_scale": _one_of(*get_args(UpdateScale)),
    "bias_correction": _one_of(*get_args(BiasCorrection)),
    "state_dtype": _one_of(*get_args(StateDtype)),
    "weight_correction": _boolean,
    "nonfinite": _one_of(*get_args(Nonfinite)),
    "decoupled_weight_decay": _boolean,
    "amsgrad": _boolean,
    "maximize": _boolean,
    **dict.fromkeys(STEP_OPTIONS, _boolean),
}
_OVERRIDES: dict[str, Callable[[str, str], float]] = {
    "p": _number,
    "weight_decay": _number,
    "lr_mult": _number,
}


def _check_label(key: str, label: str) -> str:
    if label not in _LABELS:
        raise ValueError(
            f"Unknown label {shortened(label)} in optim_args {shortened(key)}. Pathways are {', '.join(PATHWAYS)}; "
            f"components are {', '.join(COMPONENTS)}.{did_you_mean(label, _LABELS)}"
        )
    return label


def _parse_rule_label(value: str) -> Label:
    try:
        return Label.parse(value)
    except ValueError as error:
        raise ValueError(f"{error}{_IN_A_REGEX if '=' in value else ''}") from None


def _unescaped(regex: str) -> str:
    return _ESCAPE.sub(lambda match: {"x2c": ",", "x3d": "="}.get(match[1], match[0]), regex)


_OF_THE_TRAINER = ("betas", "weight_decay", "lr", "learning_rate", "epsilon", "adam_epsilon")


def _hint(key: str) -> str:
    if key in _OF_THE_TRAINER:  # which the message sends to its arguments
        return ""
    return did_you_mean(key, [*_SETTINGS, *(f"{name}.{label}" for name in _OVERRIDES for label in _LABELS)])
