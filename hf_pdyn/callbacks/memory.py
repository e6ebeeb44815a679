"""What our callbacks keep in trainer_state.json, and how it is checked when a run resumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import TrainerState

from hf_pdyn.common.checkpoint_state import check_keys, damaged
from hf_pdyn.common.errors import shortened
from hf_pdyn.common.numbers import is_count, is_number
from hf_pdyn.policy.limits import check_limits
from hf_pdyn.run_dir import run_json

INITIAL = "initial_"
"""In memory and in parameter groups: before the name of a field, what it was before any callback wrote it."""

_VERSION = 1


def memory_of(state: TrainerState) -> dict[str, Any]:
    """Our part of trainer_state.json, which callbacks write before a checkpoint and read after a resume."""
    memory: dict[str, Any] = state.stateful_callbacks.setdefault(run_json.MEMORY, {"version": _VERSION})
    return memory


def check_remembered(memory: object, names: Sequence[str], what: str) -> dict[str, Any]:
    """`memory`; ValueError unless it is a dict with exactly the step of its checkpoint and `names`."""
    found = check_keys(memory, ("step", *names), what)
    if not is_count(found["step"]):
        raise damaged(f"{what} must be of a step >= 0, got {shortened(str(found['step']))}")
    return found


def check_memory(state: TrainerState, groups: Sequence[Mapping[str, Any]]) -> None:
    """ValueError for memory that no callback can have left; what one of them remembers, it checks itself."""
    memory: object = memory_of(state)
    if not isinstance(memory, dict):
        raise damaged(f"The pdyn state must be a dict, got {shortened(str(memory))}")
    version = memory.get("version")
    if type(version) is not int or version != _VERSION:
        raise ValueError(
            f"The checkpoint's pdyn state has version {str(version)[:100]}, this hf_pdyn reads "
            f"{_VERSION}. Resume with the hf_pdyn that wrote it."
        )
    if not isinstance(memory.get(run_json.ID), str | None):
        raise damaged(f"The run's id must be text, got {shortened(str(memory[run_json.ID]))}")
    for key, initial in memory.items():
        if not key.startswith(INITIAL):
            continue
        if not isinstance(initial, list) or not all(value is None or is_number(value) for value in initial):
            raise damaged(f"{key} must be a list of finite numbers or null, got {shortened(str(initial))}")
        if len(initial) != len(groups):
            raise ValueError(
                f"The checkpoint has {key} for {len(initial)} parameter groups, this run has {len(groups)}. Resume "
                "with the same labels, or start a new run from the checkpoint's weights."
            )
        for value in initial:
            if value is not None:
                check_limits(f"The checkpoint's {key}", key.removeprefix(INITIAL), value)
