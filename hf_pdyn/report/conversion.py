"""vl-convert: Vega-Lite's scripts for the page, and charts as images, with no browser and no network."""

from __future__ import annotations

import copy
import textwrap
from collections.abc import Iterator, Sequence
from types import ModuleType

from hf_pdyn.report import theme, vega
from hf_pdyn.report.chart import Chart
from hf_pdyn.report.charts import sections
from hf_pdyn.report.recorded_run import RecordedRun

_WIDTH = 560
_SCALE = 2.0
_CHARACTERS_OF_A_LINE = 88


def vl_convert() -> ModuleType:
    """The library, imported where a report needs it."""
    import vl_convert

    module: ModuleType = vl_convert
    return module


def images(runs: Sequence[RecordedRun]) -> Iterator[tuple[str, bytes]]:
    """Every chart of a report on these runs as the name of a file and its PNG, light, 1120 pixels wide."""
    parts, _ = sections(runs)
    for section in parts:
        for chart in section.charts:
            yield f"{chart.key}.png", png(chart, runs)


def png(chart: Chart, runs: Sequence[RecordedRun]) -> bytes:
    """A chart as an image: with the title and the legend of runs that the page writes beside it."""
    spec = copy.deepcopy(chart.spec)
    spec["width"] = _WIDTH
    owner = f"{chart.run}: " if chart.run is not None and len(runs) > 1 else ""
    words = textwrap.wrap(f"{owner}{chart.note}", _CHARACTERS_OF_A_LINE)
    spec["title"] = {"text": chart.title, "subtitle": words} if words else chart.title
    color = spec["encoding"].get("color", {})
    if color.get("field") == "run" and color["legend"] is None and len(runs) > 1:
        color["legend"] = {"title": None, "columns": 3, "symbolType": "stroke"}
    spec["padding"] = 12
    image: bytes = vl_convert().vegalite_to_png(
        spec, vl_version=vega.VERSION, scale=_SCALE, config=theme.config("light"), allowed_base_urls=[]
    )
    return image
