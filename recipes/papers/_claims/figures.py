"""How all figures of claims look, and how they are saved."""

from collections.abc import Iterator
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

_STYLE: dict[str, Any] = {
    "figure.dpi": 110,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


@contextmanager
def panels(
    rows: int, columns: int, width: float = 4.0, height: float = 3.0, **options: Any
) -> Iterator[tuple[Figure, Any]]:
    """A figure of rows x columns panels, (rows, columns) Axes, closed at the end."""
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(
            rows, columns, figsize=(width * columns, height * rows), squeeze=False, layout="constrained", **options
        )
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


def logarithmic(axes: Axes) -> None:
    """A logarithmic y axis with plain numbers, of which those between powers of ten have room on short axes only."""

    def between(value: float, _: object) -> str:
        low, high = axes.get_ylim()
        digit = f"{value:.0e}"[0]
        return f"{value:g}" if high < 3 * low or (high < 30 * low and digit in "235") else ""

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(FuncFormatter(between))


def save(figure: Figure, path: Path) -> None:
    """Write it whole."""
    with replacing(path) as partial:
        figure.savefig(partial, format=path.suffix[1:], metadata={"Software": None})
