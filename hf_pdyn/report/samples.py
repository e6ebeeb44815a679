"""What sample losses say about a run, and about two runs: quantiles, the hardest samples, their overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence

HARD_SHARE = 0.1
"""The samples of the highest tenth of losses are the hard ones."""


def quantile(ordered: Sequence[float], q: float) -> float:
    """The q-quantile of rising values, by linear interpolation."""
    place = q * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def hard_samples(losses: dict[int, float]) -> frozenset[int]:
    """The indices of the highest tenth of losses by index, at least one; of equal losses the lower index."""
    count = max(1, round(HARD_SHARE * len(losses)))
    return frozenset(sorted(losses, key=lambda index: (-losses[index], index))[:count])


def jaccard(one: frozenset[int], other: frozenset[int]) -> float:
    """What two sets share, of all they hold together."""
    return len(one & other) / len(one | other) if one or other else 1.0
