"""Parameter groups split by a user's rules, for any torch optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from hf_pdyn.common.errors import shortened
from hf_pdyn.common.label_names import NAME
from hf_pdyn.common.patterns import NamePattern
from hf_pdyn.grouping.depth import depths
from hf_pdyn.grouping.groups import Group
from hf_pdyn.grouping.labels import Label, label_parameters, resembling
from hf_pdyn.grouping.names import canonical_name
from hf_pdyn.policy.group_rules import GroupRule, GroupRules


def split_by_rules(groups: Iterable[Mapping[str, Any]], model: nn.Module, rules: GroupRules) -> list[Group]:
    """Split every group by the rule that takes its parameters, and write the rules' settings into the parts.

    Parameters that no rule takes stay in a group without NAME. Settings that the groups have and the rules do not give
    are carried over. A part has parameters of one depth where its rule has `layer`. Where its rule sets or schedules
    weight_decay, that is for the part if its key `decays` is True.

    Args:
        groups: of an optimizer over parameters of `model` that has made no step.
        model: gives names and labels.
        rules: the first one that matches takes a parameter.

    Raises:
        ValueError: for a rule that takes no parameter of the groups, for `layer` where depths are not clear, and for a
            setting that the groups do not have.
    """
    groups = list(groups)
    names = {id(param): name for name, param in model.named_parameters()}
    members = [param for group in groups for param in group["params"]]
    unknown = [param for param in members if id(param) not in names]
    if unknown:
        raise ValueError(
            f"Group rules go by the model's names, and the optimizer steps a tensor of shape "
            f"{tuple(unknown[0].shape)} that is none of {type(model).__name__}'s parameters."
        )
    labels = label_parameters(model)
    own = {names[id(param)]: canonical_name(names[id(param)], model) for param in members}
    # In the model's order, from which depths are read.
    own = {name: own[name] for name, _ in model.named_parameters() if name in own}
    rule_of = _assigned(own, rules)
    depth_of = _depths(own, rule_of, rules)
    decayed = {rule.name: _decayed(rule, rule_of, labels) for rule in rules}
    result: list[Group] = []
    for group in groups:
        parts: dict[tuple[str | None, int, bool], list[Tensor]] = {}
        for param in group["params"]:
            name = names[id(param)]
            rule = rule_of.get(name)
            decays = rule is not None and name in decayed[rule.name]
            key = (None, 0, False) if rule is None else (rule.name, depth_of.get(name, 0), decays)
            parts.setdefault(key, []).append(param)
        by_name = {rule.name: rule for rule in rules}
        for (rule_name, depth, decays), params in parts.items():
            part = {**group, "params": params}
            if isinstance(part.get("lr"), Tensor):
                part["lr"] = part["lr"].clone()  # schedulers fill it, and each group has its own
            if "param_names" in group:
                part["param_names"] = [names[id(param)] for param in params]
            if rule_name is not None:
                _apply(part, by_name[rule_name], depth, decays)
            result.append(part)
    return result


def _assigned(names: Mapping[str, str], rules: GroupRules) -> dict[str, GroupRule]:
    """The rule of every name that one takes; names: raw to canonical."""
    patterns = [(NamePattern(rule.match), rule) for rule in rules]
    found: dict[str, GroupRule] = {}
    for raw, canonical in names.items():
        matching = (rule for pattern, rule in patterns if pattern.found_in(canonical) or pattern.found_in(raw))
        rule = next(matching, None)
        if rule is not None:
            found[raw] = rule
    taken = {rule.name for rule in found.values()}
    for pattern, rule in patterns:
        if rule.name in taken:
            continue
        whose = f"Group rule {rule.name!r}"
        earlier = [found[raw].name for raw, name in names.items() if pattern.found_in(name) or pattern.found_in(raw)]
        if earlier:
            raise ValueError(
                f"{whose} takes no parameter: all that {shortened(rule.match)} matches are taken by "
                f"{', '.join(dict.fromkeys(earlier))} before it. The first rule that matches wins: move it up."
            )
        raise ValueError(
            f"{whose} matches no trainable parameter by {shortened(rule.match)}. "
            f"{resembling(rule.match, names.values())}"
        )
    return found


def _depths(names: Mapping[str, str], rule_of: Mapping[str, GroupRule], rules: GroupRules) -> dict[str, int]:
    found: dict[str, int] = {}
    for rule in rules:
        if rule.layer is None:
            continue
        own = [raw for raw in names if rule_of.get(raw) is rule]
        try:
            found.update(zip(own, depths([names[raw] for raw in own]), strict=True))
        except ValueError as error:
            raise ValueError(f"Group rule {rule.name!r} has layer={rule.layer:g}, but {error}.") from None
    return found


def _decayed(rule: GroupRule, rule_of: Mapping[str, GroupRule], labels: Mapping[str, Label]) -> set[str]:
    """The rule's parameters that its weight_decay is for: the weights, or all where it takes none."""
    if rule.weight_decay is None and "weight_decay" not in rule.schedule:
        return set()
    own = [raw for raw, taken in rule_of.items() if taken is rule]
    return {raw for raw in own if labels[raw].pathway == "weight"} or set(own)


def _apply(group: Group, rule: GroupRule, depth: int, decays: bool) -> None:
    group[NAME] = rule.name
    if rule.weight_decay is not None or "weight_decay" in rule.schedule:
        group["decays"] = decays
    wanted = {"lr": (rule.lr, rule.lr_mult, rule.layer), "p": (rule.p,), "weight_decay": (rule.weight_decay,)}
    for setting, values in wanted.items():
        if any(value is not None for value in values) and group.get(setting) is None:
            raise ValueError(
                f"Group rule {rule.name!r} sets {setting}, which this optimizer's groups do not have"
                f"{'; p is for --optim padam' if setting == 'p' else ''}. Drop it, or use another optimizer."
            )
    if rule.lr is not None:
        group["lr"] = rule.lr + 0 * group["lr"]  # a tensor stays one
    if rule.lr_mult is not None:
        group["lr"] = group["lr"] * rule.lr_mult
    if rule.layer is not None:
        group["lr"] = group["lr"] * rule.layer**depth
    if rule.p is not None:
        _set(group, "p", rule.p)
    if rule.weight_decay is not None and decays:
        _set(group, "weight_decay", rule.weight_decay)


def _set(group: Group, setting: str, value: float) -> None:
    """Write it as optim_args write a label's settings: control and schedules without a label leave it alone."""
    group[setting] = group[f"initial_{setting}"] = value
    group[f"{setting}_pinned"] = True
