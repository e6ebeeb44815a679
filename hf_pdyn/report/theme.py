"""How all charts look: their colours, in light and dark surroundings, and the colour of every run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Spec = dict[str, Any]

# Okabe and Ito's colours, which stay apart under every form of colour blindness, without yellow and black, which vanish
# on a white and on a dark page, with a blue that is lighter for the same reason; and a grey.
COLOURS = ("#1A7FC4", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#8C8C8C")

_INK = {"light": "#1c2330", "dark": "#e7eaf0"}
_SOFT = {"light": "#5b6575", "dark": "#a3adbd"}
_GRID = {"light": "#e4e7ec", "dark": "#2b323d"}
_RAMP = {"light": [0, 0.9], "dark": [0.2, 1]}
"""Colours of viridis for lines: neither its yellow on white nor its violet on black."""
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', Arial, sans-serif"


@dataclass(frozen=True)
class Palette:
    """The colour of every run, the same in all charts of a report."""

    runs: tuple[str, ...]

    @property
    def of_runs(self) -> Spec:
        """The encoding of a colour by run."""
        scale = {"domain": list(self.runs), "range": [self.colour(run) for run in self.runs]}
        return {"field": "run", "type": "nominal", "scale": scale, "legend": None}

    def colour(self, run: str) -> str:
        """Colours come again after the last."""
        return COLOURS[self.runs.index(run) % len(COLOURS)]


def config(theme: str) -> Spec:
    """What all charts look like, in a `light` or `dark` surrounding."""
    ink, soft, grid = _INK[theme], _SOFT[theme], _GRID[theme]
    return {
        "background": "transparent" if theme == "dark" else "white",
        "font": _FONT,
        "view": {"stroke": None},
        "axis": {
            "labelColor": soft,
            "titleColor": soft,
            "gridColor": grid,
            "domainColor": grid,
            "tickColor": grid,
            "labelFontSize": 11,
            "titleFontSize": 11.5,
            "titleFontWeight": "normal",
            "titlePadding": 8,
            "labelPadding": 5,
            "tickSize": 4,
        },
        "axisX": {"grid": False, "domainColor": soft},
        "legend": {
            "labelColor": ink,
            "titleColor": soft,
            "titleFontWeight": "normal",
            "orient": "top",
            "labelFontSize": 11,
            "titleFontSize": 11,
            "labelLimit": 260,
            "symbolStrokeColor": soft,
        },
        "title": {"color": ink, "subtitleColor": soft, "anchor": "start", "fontSize": 14, "fontWeight": 600},
        "text": {"color": ink},
        "range": {"ramp": {"scheme": "viridis", "extent": _RAMP[theme]}},
    }
