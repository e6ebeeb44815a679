"""What a report is made of: sections of charts, and what all charts of a report share."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from hf_pdyn.report.recorded_run import RecordedRun
from hf_pdyn.report.theme import Palette, Spec
from hf_pdyn.report.thinning import evenly


@dataclass(frozen=True)
class Chart:
    """One chart. key: unique in a report, also the name of its image file. note: a sentence under the title.

    run, part: of a chart that overlays no runs, whose it is; a page shows those of one run and one part at a time.
    """

    key: str
    title: str
    note: str
    spec: Spec
    run: str | None = None
    part: str | None = None


@dataclass(frozen=True)
class Section:
    """Charts under one heading; where there are none, `absent` says why and what to do."""

    key: str
    title: str
    intro: str
    charts: tuple[Chart, ...]
    absent: str


class Drawing:
    """What the charts of a report share: its runs and their colours, and whether anything was left out.

    Attributes:
        thinned_lines, thinned_evenly: so that the page can say it.
    """

    def __init__(self, runs: Sequence[RecordedRun]) -> None:
        self.runs = runs
        self.palette = Palette(tuple(run.name for run in runs))
        self.thinned_lines = False
        self.thinned_evenly = False

    def evenly(self, steps: Sequence[int], most: int) -> list[int]:
        """At most `most` of these steps."""
        self.thinned_evenly |= len(steps) > most
        return evenly(steps, most)


def file_name(text: str) -> str:
    """What a file's name may have of a text."""
    return re.sub(r"[^A-Za-z0-9_]+", "_", text).strip("_")[:60] or "unnamed"
