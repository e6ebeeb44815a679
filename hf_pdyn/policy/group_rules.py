"""Rules that give parameters a group of their own by name: what may be written, and how it is read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hf_pdyn.common.errors import did_you_mean, shortened
from hf_pdyn.common.label_names import COMPONENTS, PATHWAYS
from hf_pdyn.common.numbers import is_number, parse_number
from hf_pdyn.common.patterns import NamePattern
from hf_pdyn.policy.limits import check_limits
from hf_pdyn.policy.schedules import Schedule

_NUMBERS = ("lr", "lr_mult", "weight_decay", "p", "layer")
_SCHEDULED = ("lr", "lr_mult", "weight_decay", "p")
_KEYS = ("name", "match", *_NUMBERS, "schedule")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class GroupRule:
    """Parameters whose name `match` is found in, and the settings of their group; None leaves a setting as it is.

    Attributes:
        name: of the group, in metrics and for schedules.
        match: a regular expression, searched in canonical and raw names.
        lr: the learning rate that the Trainer's scheduler starts from.
        lr_mult: a factor of it.
        weight_decay: of the weights among the parameters; of all of them where none is a weight.
        p: padam's exponent.
        layer: a factor of the learning rate for every layer below the top, such as 0.9.
        schedule: by setting (lr, lr_mult, weight_decay, p), its course over training.
    """

    name: str
    match: str
    lr: float | None = None
    lr_mult: float | None = None
    weight_decay: float | None = None
    p: float | None = None
    layer: float | None = None
    schedule: Mapping[str, Schedule] = field(default_factory=dict)


class GroupRules(Sequence[GroupRule]):
    """Ordered rules; the first that matches a parameter's name takes it.

    Args:
        rules: mappings with the keys of `GroupRule`, or objects of that class.

    Raises:
        ValueError: for an unknown key, a value of the wrong type or out of range, an invalid regular expression, a name
            that comes twice or is a label's, or two settings that exclude each other.

    Example:
        >>> rules = GroupRules([{"name": "vision", "match": "^vision", "lr": 2e-6}, {"name": "all", "match": "."}])
        >>> rules.names
        ('vision', 'all')
    """

    def __init__(self, rules: Sequence[Mapping[str, Any] | GroupRule]) -> None:
        if isinstance(rules, (str, bytes)) or not isinstance(rules, Sequence) or not rules:
            raise ValueError(f"Group rules must be a list of at least one rule, got {shortened(str(rules))}.")
        self._rules = tuple(_checked(_rule_of(rule, number)) for number, rule in enumerate(rules, start=1))
        names = [rule.name for rule in self._rules]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"Two group rules are named {name!r}. Join their patterns with |, or rename one.")

    @classmethod
    def read(cls, path: Path | str) -> GroupRules:
        """The rules of a YAML (or JSON) file; ValueError where there are none to read."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"groups must be a YAML file that can be read, got {str(path)!r}: {error}.") from None
        try:
            return cls(yaml.safe_load(text))
        except (yaml.YAMLError, RecursionError) as error:
            raise ValueError(f"{path} is no valid YAML: {' '.join(str(error).split())}.") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def of(cls, rules: GroupRules | Sequence[Mapping[str, Any] | GroupRule] | Path | str) -> GroupRules:
        """Rules as they may be given: themselves, a list, or the path of a file."""
        if isinstance(rules, GroupRules):
            return rules
        return cls.read(rules) if isinstance(rules, (str, Path)) else cls(rules)

    def __getitem__(self, index: Any) -> Any:
        return self._rules[index]

    def __len__(self) -> int:
        return len(self._rules)

    def __repr__(self) -> str:
        return f"GroupRules({list(self._rules)!r})"

    @property
    def names(self) -> tuple[str, ...]:
        """The groups' names, in the rules' order."""
        return tuple(rule.name for rule in self._rules)

    def schedules(self) -> Iterator[tuple[str, str, Schedule]]:
        """(setting, group's name, schedule) of every schedule."""
        for rule in self._rules:
            for setting, schedule in rule.schedule.items():
                yield setting, rule.name, schedule


def _rule_of(given: object, number: int) -> GroupRule:
    if isinstance(given, GroupRule):
        return given
    if not isinstance(given, Mapping):
        raise ValueError(f"Group rule {number} must have keys such as name and match, got {shortened(str(given))}.")
    for key in given:
        if key not in _KEYS:
            raise ValueError(
                f"Group rule {number} has the unknown key {shortened(str(key))}.{did_you_mean(str(key), _KEYS)} "
                f"Keys are {', '.join(_KEYS)}."
            )
    for key in ("name", "match"):
        if not isinstance(given.get(key), str):
            raise ValueError(f"Group rule {number} needs a {key}, a text, got {shortened(str(given.get(key)))}.")
    whose = f"Group rule {given['name']!r}"
    numbers = {key: _number(f"{whose}: {key}", key, given[key]) for key in _NUMBERS if given.get(key) is not None}
    return GroupRule(given["name"], given["match"], **numbers, schedule=_schedules(whose, given.get("schedule") or {}))


def _checked(rule: GroupRule) -> GroupRule:
    whose = f"Group rule {shortened(rule.name)}"
    if not _NAME.fullmatch(rule.name) or rule.name in (*PATHWAYS, *COMPONENTS):
        raise ValueError(
            f"A group's name must be letters, digits, _ and - (at most 64) and no label "
            f"({', '.join((*PATHWAYS, *COMPONENTS))}), got {shortened(rule.name)}."
        )
    try:
        NamePattern(rule.match)
    except ValueError as error:
        raise ValueError(f"{whose}: {error}") from None
    if rule.lr is not None and rule.lr_mult is not None:
        raise ValueError(f"{whose} has lr and lr_mult. Keep one: lr_mult multiplies the Trainer's learning rate.")
    if {"lr", "lr_mult"} <= rule.schedule.keys():
        raise ValueError(f"{whose} schedules lr and lr_mult. Keep one: lr_mult multiplies the Trainer's schedule.")
    if "lr" in rule.schedule and (rule.lr, rule.lr_mult, rule.layer) != (None, None, None):
        raise ValueError(f"{whose} schedules lr, so lr, lr_mult and layer would have no effect. Drop them.")
    for key in _NUMBERS:
        if getattr(rule, key) is not None:
            _check(f"{whose}: {key}", key, getattr(rule, key))
    for setting, schedule in rule.schedule.items():
        for value in schedule.values:
            _check(f"{whose}: a schedule of {setting}", setting, value)
    return rule


def _number(name: str, key: str, value: object) -> float:
    # YAML 1.1 reads 2e-6, without a dot, as text.
    if isinstance(value, str):
        try:
            return parse_number(value)
        except ValueError:
            pass
    if not is_number(value):
        raise ValueError(f"{name} must be a finite number, got {shortened(str(value))}.")
    return float(value)  # type: ignore[arg-type]


def _check(name: str, key: str, value: float) -> None:
    if key == "layer" and not 0 < value <= 1:
        raise ValueError(f"{name} must be in (0, 1], a factor for every layer below the top, got {value:g}.")
    check_limits(name, key, value)


def _schedules(whose: str, given: object) -> dict[str, Schedule]:
    if not isinstance(given, Mapping):
        raise ValueError(f"{whose}: schedule must map settings to schedules, got {shortened(str(given))}.")
    found = {}
    for setting, text in given.items():
        if setting not in _SCHEDULED:
            raise ValueError(
                f"{whose} schedules the unknown setting {shortened(str(setting))}. "
                f"Settings are {', '.join(_SCHEDULED)}."
            )
        try:
            found[setting] = Schedule.of(text if isinstance(text, Schedule) else str(text))
        except ValueError as error:
            raise ValueError(f"{whose}: {error}") from None
    return found
