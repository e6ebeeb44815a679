"""Measuring must never end a training run."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Measures(Protocol):
    """Something that can stop measuring.

    gave_up: whether it has, after a failure; whoever begins a new training resets it.
    """

    gave_up: bool

    def stop_measuring(self) -> None:
        """Measure nothing from here on."""


def never_fatal(method: Callable[..., T]) -> Callable[..., T | None]:
    """Turn an exception in a measuring method into `give_up` and None; later calls return None at once."""

    @functools.wraps(method)
    def guarded(self: Measures, *args: Any, **kwargs: Any) -> T | None:
        if self.gave_up:
            return None
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            give_up(self, error)
            return None

    return guarded


def attempted(owner: Measures, act: Callable[[], T]) -> T | None:
    """What `act` returns; after a failure `give_up` and None.

    Unlike a `never_fatal` method it acts also once the owner has given up: other processes wait for its part.
    """
    try:
        return act()
    except Exception as error:
        give_up(owner, error)
        return None


def give_up(owner: Measures, error: Exception) -> None:
    """Stop measuring after `error`, with one warning however often it is called."""
    if owner.gave_up:
        return
    owner.gave_up = True
    owner.stop_measuring()
    warnings.warn(
        f"{type(owner).__name__} of hf_pdyn stopped measuring this run: {described(error)}. Training goes on; what it "
        "logs is missing from here, and what it moves stays where it is.",
        stacklevel=3,
    )


def described(error: Exception) -> str:
    """Its type and the start of its text, which may be all numbers of a tensor."""
    return f"{type(error).__name__}: {str(error)[:200]}"
