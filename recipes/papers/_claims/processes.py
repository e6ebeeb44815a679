"""The processes of a launch: how many, which one writes, and what it tells the others."""

import os
from collections.abc import Callable
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from _common.entry_point import RecipeError

_Read = TypeVar("_Read")


def world_size() -> int:
    """The processes of this launch."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this process writes and prints."""
    return os.environ.get("RANK", "0") == "0"


def of_one_process(batch_size: int) -> int:
    """The share of a batch that each process takes; RecipeError where they cannot share it evenly."""
    if batch_size % world_size():
        raise RecipeError(
            f"the processes must divide a batch of {batch_size}, got {world_size()} of them; launch another number"
        )
    return batch_size // world_size()


def from_main_process(read: Callable[[], _Read], device: str) -> _Read:
    """What the main process reads, on every process."""
    if world_size() == 1:
        return read()
    PartialState(cpu=device == "cpu")  # or the group, made anew, would be of the machine's best device
    found: list[Any] = [read() if is_main_process() else None]
    return broadcast_object_list(found)[0]
