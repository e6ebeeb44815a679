"""Runs side by side in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from rich import box
from rich.table import Table
from rich.text import Text

from hf_pdyn.report.recorded_run import RecordedRun
from hf_pdyn.report.shares import EXPLAINED, Shares, percent, shares
from hf_pdyn.report.summary import configuration, final_values, notes

_SIDE_BY_SIDE = 4
_WIDEST = 40
"""Characters of a column; what is longer goes on in the next line."""


def comparison(runs: Sequence[RecordedRun]) -> Iterator[Table | Text]:
    """Final values, shares, then the settings that differ. Names are text, never markup."""
    yield _final_values(runs)
    lines = shares(runs)
    if lines:
        yield _shares(runs, lines)
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


def _shares(runs: Sequence[RecordedRun], lines: Sequence[Shares]) -> Table:
    """Two columns a run; of many runs, a row a run."""
    table = Table(title="Shares", box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
    if len(runs) <= _SIDE_BY_SIDE:
        table.caption = Text(EXPLAINED)
        table.add_column("")
        for run in runs:
            first, second = (f"{run.name}\n", "\n") if len(runs) > 1 else ("", "")
            table.add_column(Text(f"{first}gradient"), justify="right", max_width=_WIDEST, overflow="fold")
            table.add_column(f"{second}update", justify="right")
        for line in lines:
            both = zip(map(percent, line.gradient), map(percent, line.update), strict=True)
            table.add_row(f"  {line.component}" if line.component else line.name, *chain.from_iterable(both))
        return table
    table.caption = Text(f"{EXPLAINED} In percent, gradient / update.")
    table.add_column("run", max_width=_WIDEST, overflow="fold")
    for line in lines:
        table.add_column(line.name.replace("/", "\n"), justify="right", no_wrap=True)
    for i, run in enumerate(runs):
        cells = (f"{percent(line.gradient[i])} / {percent(line.update[i])}" for line in lines)
        table.add_row(Text(run.name), *(cell.replace(" %", "") for cell in cells))
    return table
