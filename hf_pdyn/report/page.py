"""The report's page: one HTML file that holds its data, its style and its scripts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from itertools import groupby
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from hf_pdyn._version import __version__
from hf_pdyn.report import theme, vega
from hf_pdyn.report.chart import Section
from hf_pdyn.report.charts import sections
from hf_pdyn.report.conversion import vl_convert
from hf_pdyn.report.explain import explain
from hf_pdyn.report.recorded_run import RecordedRun, printable
from hf_pdyn.report.shares import EXPLAINED, percent, shares
from hf_pdyn.report.summary import NOTHING, Setting, configuration, final_values, notes

_DECISIONS_OF_A_RUN = 200
_RUNS_IN_WORDS = 8


class Choices(NamedTuple):
    """What may be chosen in a section with heat maps, of which those of one run and part are shown."""

    runs: list[str]
    parts: list[str]


def page(runs: Sequence[RecordedRun]) -> str:
    """The report on these runs as HTML. ImportError, with the cure, where vl-convert-python is missing."""
    parts, drawing = sections(runs)
    settings = configuration(runs)
    decisions = [{"run": run.name, **row} for run in runs for row in run.decided[-_DECISIONS_OF_A_RUN:]]
    charts = [chart for section in parts for chart in section.charts]
    explanations = [explained for explained in map(explain, runs) if explained.sentences or explained.findings]
    return _template().render(
        title=_title(runs),
        version=__version__,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        runs=runs,
        sections=parts,
        drawing=drawing,
        columns=final_values(runs),
        notes=notes(runs),
        explanations=explanations[:_RUNS_IN_WORDS],
        explanations_left_out=len(explanations[_RUNS_IN_WORDS:]),
        shares=shares(runs),
        shares_explained=EXPLAINED,
        settings=settings,
        differences=sum(setting.differs for setting in settings),
        decisions=decisions,
        decisions_of_a_run=_DECISIONS_OF_A_RUN,
        decisions_left_out=sum(len(run.decided) for run in runs) - len(decisions),
        palette=drawing.palette,
        colours=len(theme.COLOURS),
        style=Markup(_file("page.css")),
        library=Markup(_library()),
        script=Markup(_file("page.js")),
        data=_embedded(
            {
                "specs": {chart.key: {**chart.spec, "description": f"{chart.title}. {chart.note}"} for chart in charts},
                "configs": {name: theme.config(name) for name in ("light", "dark")},
            }
        ),
    )


def _title(runs: Sequence[RecordedRun]) -> str:
    return f"Report on {runs[0].name}" if len(runs) == 1 else f"Report on {len(runs)} runs"


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals.update(
        badge=_badge, state=_state, choices_of=_choices_of, number=_number, change=_change, percent=percent
    )
    environment.filters.update(groupby_in_order=_by_group, printable=printable)
    return environment.from_string(_file("page.html.j2"))


def _file(name: str) -> str:
    return resources.files("hf_pdyn.report").joinpath(name).read_text(encoding="utf-8")


@cache
def _library() -> str:
    script: str = vl_convert().javascript_bundle(vl_version=vega.VERSION)
    # What would end the script element early, or keep it open, can only be part of a string or a regular expression.
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _embedded(value: Any) -> Markup:
    """JSON that no name in it can end the script element of."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)  # ASCII
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _state(run: RecordedRun) -> str:
    """The CSS class of its state."""
    return {True: "done", False: "undone", None: "unknown"}[run.finished]


def _badge(run: RecordedRun) -> Markup:
    words = {"done": "finished", "undone": "not finished", "unknown": "end unknown"}[_state(run)]
    flag = ", see below" if run.problems else ""
    return Markup('<span class="badge {}">{}{}</span>').format(_state(run), words, flag)


def _choices_of(section: Section) -> Choices | None:
    owned = [chart for chart in section.charts if chart.run is not None]
    if not owned:
        return None
    return Choices(
        list(dict.fromkeys(str(chart.run) for chart in owned)), list(dict.fromkeys(str(chart.part) for chart in owned))
    )


def _by_group(settings: Iterable[Setting]) -> list[list[Setting]]:
    return [list(group) for _, group in groupby(settings, key=lambda setting: setting.group)]


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.4g}"


def _change(value: float | None) -> str:
    return NOTHING if value is None else f"{value:+.2%}"
