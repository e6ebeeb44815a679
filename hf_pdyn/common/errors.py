"""Error messages that name the cure: what is allowed, and the nearest known name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


def nearest(name: str, known: Iterable[str], n: int = 3) -> list[str]:
    """Up to `n` of `known` that resemble `name`, best first; empty where nothing does."""
    known = list(known)
    alike = [other for other in known if other.lower() == name.lower()]
    return alike[:n] or get_close_matches(name, known, n=n, cutoff=0.5)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the nearest known name, or the empty string."""
    found = nearest(name, known, n=1)
    return f" Did you mean {found[0]!r}?" if found else ""


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raise ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(
            f"{name} must be one of {', '.join(allowed)}, got {value!r}.{did_you_mean(str(value), allowed)}"
        )


def shortened(text: str, most: int = 100) -> str:
    """`repr(text)`, without its middle where it is longer than an error message should be."""
    return repr(text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 2 :]}")
