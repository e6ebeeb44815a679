"""How all figures of claims look, and how they are saved.

They are read at the width of a README: so wide they are made, whatever the number of panels. A figure has one legend,
below its panels; panels that are compared have one scale (`sharey`, `sharex`); controls have a background of their own.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")  # before pyplot: no window is ever opened

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from hf_pdyn.common.atomic import replacing

WIDTH = 8.3
"""Inches, of 100 pixels where it is read."""
_STYLE: dict[str, Any] = {
    "figure.dpi": 150,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.grid": True,
    "grid.alpha": 0.25,
    "lines.linewidth": 1.3,
    "legend.frameon": False,
}
_CONTROL = "#f1f1f1"


@contextmanager
def panels(rows: int, columns: int, height: float = 2.2, **options: Any) -> Iterator[tuple[Figure, Any]]:
    """A figure of rows x columns panels of that height, (rows, columns) Axes, closed at the end."""
    with plt.rc_context(_STYLE):
        size = (WIDTH, height * rows + 0.4)
        figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **options)
        try:
            yield figure, axes
        finally:
            plt.close(figure)


def colours(count: int) -> list[Any]:
    """From small p to large: dark blue to yellow-green, apart in grey too."""
    return [plt.get_cmap("viridis")(0.92 * i / max(count - 1, 1)) for i in range(count)]


def band(axes: Axes, x: Any, values: Any, **style: Any) -> None:
    """The mean over seeds as a line, with their spread; values: (seeds, x)."""
    mean, spread = values.mean(0), values.std(0, ddof=1)
    (line,) = axes.plot(x, mean, **style)
    axes.fill_between(x, mean - spread, mean + spread, color=line.get_color(), alpha=0.15, linewidth=0)


def legend(figure: Figure, columns: int = 4) -> None:
    """One for all panels, below them: every label once, in the order of panels."""
    found = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=columns)


def control(panels: Iterable[Axes]) -> None:
    """Set panels apart that are no part of what the paper claims."""
    for axes in panels:
        axes.set_facecolor(_CONTROL)


def logarithmic(axes: Axes, which: str = "y") -> None:
    """A logarithmic axis with plain numbers, of which those between powers of ten have room on short axes only.

    which: y, or x, whose numbers stand beside each other.
    """
    axis = axes.yaxis if which == "y" else axes.xaxis

    def between(value: float, _: object) -> str:
        low, high = sorted(axis.get_view_interval())
        digit = f"{value:.0e}"[0]
        if which == "x":
            return f"{value:g}" if high < 12 * low and digit in "25" else ""
        return f"{value:g}" if high < 3 * low or (high < 30 * low and digit in "235") else ""

    axes.set(**{f"{which}scale": "log"})
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(FuncFormatter(between))


def save(figure: Figure, path: Path) -> None:
    """Write it whole."""
    with replacing(path) as partial:
        figure.savefig(partial, format=path.suffix[1:], metadata={"Software": None})
