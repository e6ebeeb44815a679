"""Measuring must never end a training run."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class GivesUp(Protocol):
    """Something that can stop measuring."""

    def give_up(self) -> None:
        """Measure nothing from here on."""


def never_fatal(method: Callable[..., T]) -> Callable[..., T | None]:
    """Turn an exception in a measuring method into one warning, `self.give_up()` and None."""

    @functools.wraps(method)
    def guarded(self: GivesUp, *args: Any, **kwargs: Any) -> T | None:
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            self.give_up()
            # Of an error about a tensor the text may be all of its numbers.
            warnings.warn(
                f"hf_pdyn stopped measuring this run: {type(error).__name__}: {str(error)[:200]}. Training goes on; "
                "its metrics are missing and Algorithm 1 leaves p where it is from here.",
                stacklevel=2,
            )
            return None

    return guarded
