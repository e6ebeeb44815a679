"""Replacing another library's functions, and what to say where one is gone."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

_MARK = "replaced_by_hf_pdyn"
_MISSING = object()

_warned: set[str] = set()


@dataclass(frozen=True)
class Patch:
    """One attribute of another library that hf_pdyn replaces or adds to.

    target: "package.module:Class.attribute".
    tried: the oldest and the newest version of the library that it was tried with.
    when: what has it installed.
    lost: what is lost without it, as a sentence.
    required: a missing target is an error; otherwise it is one warning.
    since: the first version with this target. Older ones have nothing to replace, and nothing is lost.
    """

    target: str
    tried: str
    when: str
    lost: str
    required: bool
    since: str | None = None

    @property
    def library(self) -> str:
        """The distribution that the target belongs to."""
        return self.target.partition(":")[0].partition(".")[0]

    @property
    def is_expected(self) -> bool:
        """Whether the installed version should have the target."""
        if self.since is None:
            return True
        from packaging.version import Version

        return Version(_installed(self.library)) >= Version(self.since)

    def find(self) -> tuple[Any, str, Any] | None:
        """The target's owner, its name there and its value; None where the library has no such attribute."""
        module, _, path = self.target.partition(":")
        owner: Any = None
        value: Any = import_module(module)
        for name in path.split("."):
            owner, value = value, getattr(value, name, _MISSING)
        return None if value is _MISSING else (owner, name, value)

    def found(self) -> tuple[Any, str, Any] | None:
        """As `find`, but says what a missing target costs: RuntimeError if it is required, else one warning."""
        found = self.find()
        if found is None and self.is_expected:
            message = (
                f"{self.library} {_installed(self.library)} has no {self.target}, which hf_pdyn changes (tried with "
                f"{self.library} {self.tried}). {self.lost} Install a version that was tried."
            )
            if self.required:
                raise RuntimeError(message)
            if self.target not in _warned:
                _warned.add(self.target)
                warnings.warn(message, stacklevel=3)
        return found

    def value(self) -> Any:
        """The target itself. RuntimeError where it is missing."""
        found = self.found()
        assert found is not None, f"{self.target} is required"
        return found[2]

    def replace(self, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Let the target be what `wrap` makes of it, unless it is that already.

        A library that wraps ours in its turn with functools.wraps copies the mark, so ours stays the inner one.
        """
        found = self.found()
        if found is None or getattr(found[2], _MARK, False):
            return
        owner, name, original = found
        replacement = functools.wraps(original)(wrap(original))
        setattr(replacement, _MARK, True)
        setattr(owner, name, replacement)


def _installed(library: str) -> str:
    from importlib.metadata import version  # slow to import, and `import hf_pdyn` comes by here

    return version(library)
