"""Runs side by side in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from hf_pdyn.report.recorded_run import RecordedRun
from hf_pdyn.report.summary import configuration, final_values, notes

_SIDE_BY_SIDE = 4
_WIDEST = 40
"""Characters of a column; what is longer goes on in the next line."""


def comparison(runs: Sequence[RecordedRun]) -> Iterator[Table | Text]:
    """Final values, then the settings that differ. Names are text, never markup."""
    yield _final_values(runs)
    differing = [setting for setting in configuration(runs) if setting.differs]
    if differing:
        table = Table("setting", title="Settings that differ", box=box.SIMPLE_HEAD, title_justify="left")
        for run in runs:
            table.add_column(Text(run.name), max_width=_WIDEST, overflow="fold")
        for setting in differing:
            table.add_row(Text(setting.name), *map(Text, setting.texts()))
        yield table
    elif len(runs) > 1:
        known = sum(bool(run.starts) for run in runs)
        yield Text(
            "No setting differs." if known == len(runs) else f"{len(runs) - known} configurations are not known."
        )


def _final_values(runs: Sequence[RecordedRun]) -> Table:
    """A column a run; of many runs, a row a run."""
    columns = final_values(runs)
    table = Table(title="Final values", box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
    table.caption = Text("\n".join(notes(runs))) if notes(runs) else None
    if len(runs) <= _SIDE_BY_SIDE:
        table.add_column("")
        for run in runs:
            table.add_column(Text(run.name), justify="right", max_width=_WIDEST, overflow="fold")
        table.add_row("state", *(run.status for run in runs))
        for column in columns:
            table.add_row(column.heading, *column.texts())
        return table
    table.add_column("run", max_width=_WIDEST, overflow="fold")
    for column in columns:
        table.add_column(column.heading, justify="right", no_wrap=True)
    for i, run in enumerate(runs):
        table.add_row(Text(run.name), *(column.texts()[i] for column in columns))
    return table
