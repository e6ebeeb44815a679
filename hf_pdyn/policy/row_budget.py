"""How many rows a run leaves on disk, however many records it has."""

from __future__ import annotations

from dataclasses import dataclass

MOST_VALUES = 4_000_000
"""Numbers that the rows of one kind have in a run: a row of a layer's quantity has one, of a curve one a point."""


@dataclass(frozen=True)
class RowPlan:
    """Which of a run's records have rows: those at every `every`-th multiple of `interval` steps, and the last.

    interval: steps between records. every: 1 takes all records, also such as stand at no multiple.
    """

    interval: int
    every: int
    total_steps: int

    def takes(self, step: int) -> bool:
        """Whether the record at this step has rows."""
        return self.every == 1 or step % (self.every * self.interval) == 0 or step >= self.total_steps

    @property
    def thinned(self) -> str | None:
        """What is left out, in words; None where nothing is."""
        if self.every == 1:
            return None
        return f"one record in {self.every}, every {self.every * self.interval} steps"


def plan_rows(values: int, *, interval: int, total_steps: int, most: int | None = None) -> RowPlan:
    """The plan by which a run of `total_steps` has at most about `most` numbers in its rows.

    Args:
        values: numbers in the rows of one record.
        interval: steps between records, >= 1.
        total_steps: of the run.
        most: numbers that the run may have; MOST_VALUES by default.
    """
    most = MOST_VALUES if most is None else most
    records = max(total_steps // interval, 1)
    return RowPlan(interval, max(-(-values * records // most), 1), total_steps)
