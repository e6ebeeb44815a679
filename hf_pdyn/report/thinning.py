"""Fewer points where there are more than a chart can show."""

from __future__ import annotations

from collections.abc import Sequence

from hf_pdyn.report.recorded_run import Series


def thin(series: Series, most: int) -> Series:
    """At most `most` (>= 4) of its points: first, last, and the lowest and highest of each stretch between.

    Spikes stay, which means or every n-th point would lose.
    """
    count = len(series)
    if count <= most:
        return series
    kept = {0, count - 1}
    stretches = max((most - 2) // 2, 1)
    for i in range(stretches):
        stretch = range(1 + (count - 2) * i // stretches, 1 + (count - 2) * (i + 1) // stretches)
        kept |= {min(stretch, key=series.values.__getitem__), max(stretch, key=series.values.__getitem__)}
    chosen = sorted(kept)
    return Series(
        tuple(series.steps[i] for i in chosen),
        tuple(series.epochs[i] for i in chosen),
        tuple(series.values[i] for i in chosen),
    )


def evenly(items: Sequence[int], most: int) -> list[int]:
    """At most `most` (>= 2) of `items`, evenly spaced, first and last among them."""
    if len(items) <= most:
        return list(items)
    return [items[i * (len(items) - 1) // (most - 1)] for i in range(most)]
