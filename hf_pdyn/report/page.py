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
from hf_pdyn.report.cards import Card, cards_of
from hf_pdyn.report.chart import Section
from hf_pdyn.report.charts import sections
from hf_pdyn.report.conversion import vl_convert
from hf_pdyn.report.explain import Explanation, baseline_among, explain
from hf_pdyn.report.recorded_run import RecordedRun, printable
from hf_pdyn.report.shares import EXPLAINED, percent, shares
from hf_pdyn.report.summary import NOTHING, Setting, configuration, final_values, notes
from hf_pdyn.report.symbols import ALLOCATION_DYNAMICS, IMPLICIT_BIAS, MIRROR_FLOW, SYMBOLS

_DECISIONS_OF_A_RUN = 200
_RUNS_IN_WORDS = 8


class Choices(NamedTuple):
    """What may be chosen in a section with heat maps, of which those of one run and part are shown."""

    runs: list[str]
    parts: list[str]


class First(NamedTuple):
    """What the first screen says of a run: words, then cards."""

    explained: Explanation
    cards: list[Card]


def page(runs: Sequence[RecordedRun], baseline: RecordedRun | None = None) -> str:
    """The report on these runs as HTML. ImportError, with the cure, where vl-convert-python is missing.

    baseline: the one of them that the others are told from; None takes `baseline_among` them.
    """
    parts, drawing = sections(runs)
    settings = configuration(runs)
    decisions = [{"run": run.name, **row} for run in runs for row in run.decided[-_DECISIONS_OF_A_RUN:]]
    charts = [chart for section in parts for chart in section.charts]
    lines = shares(runs)
    baseline = baseline or baseline_among(runs)
    firsts = [_first(run, None if run is baseline else baseline) for run in runs]
    firsts = [first for first in firsts if first.cards or first.explained.outcome or first.explained.findings]
    firsts.sort(key=lambda first: first.explained.run is baseline)  # what is told from it comes first
    return _template().render(
        title=_title(runs),
        version=__version__,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        runs=runs,
        sections=parts,
        drawing=drawing,
        columns=final_values(runs),
        notes=notes(runs),
        baseline=baseline,
        firsts=firsts[:_RUNS_IN_WORDS],
        firsts_left_out=len(firsts[_RUNS_IN_WORDS:]),
        symbols=SYMBOLS,
        papers=(ALLOCATION_DYNAMICS, MIRROR_FLOW, IMPLICIT_BIAS),
        epochs=any(record["epoch"] is not None for run in runs for record in run.history),
        shares=lines,
        sized=any(size is not None for line in lines for size in line.parameters),
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


def _first(run: RecordedRun, baseline: RecordedRun | None) -> First:
    return First(explain(run, baseline), cards_of(run, baseline))


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
