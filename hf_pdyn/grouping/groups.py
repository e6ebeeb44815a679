"""Parameter groups of one label each, for any torch optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from hf_pdyn.common.errors import did_you_mean
from hf_pdyn.common.label_names import COMPONENTS, NAME, PATHWAYS
from hf_pdyn.grouping.labels import Label, Rule, label_parameters

Group = dict[str, Any]
"""An optimizer's parameter group: `params`, and the settings that hold for them."""


def split_groups(
    groups: Iterable[Mapping[str, Any]],
    names: Mapping[Tensor, str] | Iterable[tuple[str, Tensor]],
    labels: Mapping[str, Label],
) -> list[Group]:
    """Split every group by label. Which parameters share a group stays a refinement of what came in.

    Args:
        groups: as torch optimizers take them; `params` may hold tensors or `(name, tensor)` pairs.
        names: the parameters' names, as a mapping or as `model.named_parameters()`.
        labels: from `label_parameters`.

    Returns:
        Groups in the given order, within each in the order of PATHWAYS and COMPONENTS, none empty. `params`
        is a list of `(name, tensor)`, so that torch (2.6 and later) keeps `param_names`; `pathway` and
        `component` are plain strings, since `optimizer.pt` is loaded with weights_only=True; every other
        key is carried over.

    Raises:
        ValueError: for a parameter that comes twice, has no name or has no label.
    """
    pairs = ((name, tensor) for tensor, name in names.items()) if isinstance(names, Mapping) else names
    name_of = {id(tensor): name for name, tensor in pairs}
    seen: set[int] = set()
    result: list[Group] = []
    for group in groups:
        members: dict[Label, list[tuple[str, Tensor]]] = {}
        for tensor in _tensors(group["params"]):
            name = _name(tensor, name_of, labels)
            if id(tensor) in seen:
                raise ValueError(f"Parameter {name!r} is in the groups twice. Every parameter must be in exactly one.")
            seen.add(id(tensor))
            members.setdefault(labels[name], []).append((name, tensor))
        settings = {key: value for key, value in group.items() if key not in ("params", "param_names")}
        for label in sorted(members, key=_order):
            pathway, component = label
            labelled = {"params": members[label], "pathway": pathway, "component": component}
            result.append({**settings, **labelled})
    return result


def build_param_groups(
    model: nn.Module,
    *,
    weight_decay: float = 0.0,
    decay_bias_like: bool = False,
    labels: Mapping[str, Label] | None = None,
    rules: Sequence[Rule] = (),
) -> list[Group]:
    """Groups of all trainable parameters of `model`, for a training loop without the Trainer.

    Args:
        model: wrapped or not.
        weight_decay: of the weights.
        decay_bias_like: whether the bias-like parameters decay as well, instead of by 0.
        labels: from `label_parameters`, where they are at hand already.
        rules: for `label_parameters` otherwise.

    Raises:
        ValueError: if nothing is trainable, and what `label_parameters` and `split_groups` raise.

    Example:
        >>> groups = build_param_groups(model, weight_decay=0.01)
        >>> sorted({(group["pathway"], group["weight_decay"]) for group in groups})
        [('bias_like', 0.0), ('weight', 0.01)]
    """
    if labels is not None and rules:
        raise ValueError("Give labels or rules, not both: rules belong to label_parameters(model, rules).")
    if labels is None:
        labels = label_parameters(model, rules)
    trainable = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    if not trainable:
        raise ValueError(
            f"{type(model).__name__} has no trainable parameter. Set requires_grad before building groups; "
            "a PEFT adapter loaded from disk needs PeftModel.from_pretrained(..., is_trainable=True)."
        )
    groups = split_groups([{"params": trainable}], trainable, labels)
    for group in groups:
        decays = decay_bias_like or group["pathway"] == "weight"
        group["weight_decay"] = weight_decay if decays else 0.0
    return groups


def select(groups: Iterable[Group], label: str) -> list[Group]:
    """The groups (the same objects) whose pathway, component or name is `label`.

    Look groups up at every use: accelerate replaces the dicts when it prepares an optimizer.

    Raises:
        ValueError: if no group has it.
    """
    groups = list(groups)
    chosen = [group for group in groups if label in (group.get("pathway"), group.get("component"), group.get(NAME))]
    if chosen:
        return chosen
    present = present_labels(groups)
    if label not in (*PATHWAYS, *COMPONENTS):
        known = dict.fromkeys((*PATHWAYS, *COMPONENTS, *present))
        raise ValueError(f"Unknown label {label!r}.{did_you_mean(label, known)} Labels are {', '.join(known)}.")
    listed = ", ".join(present) or "none; split_groups gives them"
    raise ValueError(f"No parameter group has the label {label!r}. Labels present: {listed}.")


def present_labels(groups: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """The pathways and components that `groups` have, in the order of PATHWAYS and COMPONENTS, then their names."""
    groups = list(groups)
    found = {group.get(key) for group in groups for key in ("pathway", "component")}
    names = dict.fromkeys(group[NAME] for group in groups if NAME in group)
    return (*(label for label in (*PATHWAYS, *COMPONENTS) if label in found), *names)


def _tensors(params: Any) -> list[Tensor]:
    if isinstance(params, Tensor):
        return [params]
    return [entry[1] if isinstance(entry, tuple) else entry for entry in params]


def _name(tensor: Tensor, name_of: Mapping[int, str], labels: Mapping[str, Label]) -> str:
    name = name_of.get(id(tensor))
    if name is None:
        raise ValueError(
            f"A parameter of shape {tuple(tensor.shape)} in the groups is none of the model's. "
            "Build the groups from the same model object (wrapping may replace its parameters)."
        )
    if name not in labels:
        raise ValueError(
            f"Parameter {name!r} in the groups has no label. Labels exist for parameters that were "
            "trainable when label_parameters ran: freeze and unfreeze before that."
        )
    return name


def _order(label: Label) -> tuple[int, int]:
    return PATHWAYS.index(label.pathway), COMPONENTS.index(label.component)
