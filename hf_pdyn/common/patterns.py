"""Users' regular expressions over parameter names, in bounded time and memory.

Python's `re` can take for ever to match (`(a|aa)*b`) and cannot be interrupted. The package `regex`, which transformers
needs as well, has the same syntax and takes a timeout; it unrolls counted repeats when it compiles, so these are
limited.
"""

from __future__ import annotations

import math
import re
import time

import regex

from hf_pdyn.common.errors import shortened

_LONGEST = 500
"""Characters of a pattern."""
_MOST_REPEATS = 1000
"""The product of a pattern's counts, such as 12 for `(a{3}){2,4}`; at both limits compiling takes a second."""
_SECONDS = 5.0
"""Time for all names of a model; a usual pattern takes microseconds a name."""

_COUNT = re.compile(r"\{\s*(\d*)\s*,?\s*(\d*)\s*\}")


class NamePattern:
    """A pattern that is searched in parameter names.

    Raises:
        ValueError: when it is made, for a pattern that is invalid or too large; when it is searched, for one that
            takes too long.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._seconds_left = _SECONDS
        if len(text) > _LONGEST:
            raise ValueError(f"A regular expression must have at most {_LONGEST} characters, got {len(text)}.")
        # Digits beyond a float are infinity here, where int() would raise.
        repeats = math.prod(max(float(count or 1) for count in counts) or 1 for counts in _COUNT.findall(text))
        if repeats > _MOST_REPEATS:
            raise ValueError(
                f"A regular expression must repeat by {{...}} at most {_MOST_REPEATS} times in all, got "
                f"{shortened(text)}. Use * or +."
            )
        try:
            self._compiled = regex.compile(text)
        except (regex.error, RecursionError, OverflowError) as error:
            raise ValueError(f"{shortened(text)} is no valid regular expression: {error}.") from None

    def found_in(self, name: str) -> bool:
        """Whether it matches a part of `name`."""
        begun = time.monotonic()
        try:
            return self._compiled.search(name, timeout=max(self._seconds_left, 0.001)) is not None
        except TimeoutError:
            raise ValueError(
                f"The regular expression {shortened(self._text)} takes more than {_SECONDS:g} s to search the model's "
                "names. Write it without repeats of what repeats already, such as (.*)*."
            ) from None
        finally:
            self._seconds_left -= time.monotonic() - begun
