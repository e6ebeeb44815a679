"""A name for `--optim` of our own. Imports nothing of transformers: it is called when that is there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hf_pdyn.integrations import patches


def add_optimizer_name(name: str) -> None:
    """Make `TrainingArguments(optim=name)` valid. Idempotent.

    OptimizerNames is an Enum without an extension point, so the member is made by hand. It must exist before an
    HfArgumentParser is built: the parser copies the choices.
    """
    names = patches.OPTIMIZER_NAMES.value()
    if name in names._value2member_map_:
        return
    member = str.__new__(names, name)
    member._name_ = name.upper()
    member._value_ = name
    member.__objclass__ = names
    member._sort_order_ = len(names._member_names_)
    type.__setattr__(names, member._name_, member)
    names._member_names_.append(member._name_)
    names._member_map_[member._name_] = member
    names._value2member_map_[name] = member


def add_optimizer_handler(name: str, handler: Callable[[Any], tuple[Any, dict[str, Any]]]) -> None:
    """Let `handler` build the optimizer of that name for every Trainer. Idempotent."""
    patches.OPTIMIZER_HANDLERS.value()[patches.OPTIMIZER_NAMES.value()(name)] = handler
