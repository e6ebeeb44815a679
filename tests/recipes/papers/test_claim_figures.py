from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from papers._claims import figures


@pytest.mark.parametrize("columns", [1, 4])
def test_a_figure_is_as_wide_as_a_readme(tmp_path: Path, columns: int) -> None:
    with figures.panels(2, columns) as (figure, grid):
        assert grid.shape == (2, columns)
        figures.save(figure, tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as image:
        assert image.width == round(150 * figures.WIDTH)


def test_one_legend_has_every_label_once() -> None:
    with figures.panels(1, 2) as (figure, ((left, right),)):
        left.plot([0], [0], label="a")
        left.plot([0], [0], label="b")
        right.plot([0], [0], label="b")
        right.plot([0], [0], label="c")
        figures.legend(figure)
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == ["a", "b", "c"]
        assert left.get_legend() is None and right.get_legend() is None


def test_controls_are_set_apart() -> None:
    with figures.panels(1, 2) as (_, ((left, right),)):
        figures.control([right])
        assert to_hex(left.get_facecolor()) != to_hex(right.get_facecolor())


def test_a_band_is_the_mean_over_seeds() -> None:
    with figures.panels(1, 1) as (_, ((axes,),)):
        figures.band(axes, [0, 1], np.array([[1.0, 2.0], [3.0, 6.0]]), label="x")
        (line,) = axes.get_lines()
        assert line.get_ydata().tolist() == [2.0, 4.0]
        lowest = axes.collections[0].get_datalim(axes.transData).y0
        assert lowest == pytest.approx(2 - 2**0.5)


@pytest.mark.parametrize("which", ["x", "y"])
def test_a_logarithmic_axis_has_plain_numbers(which: str) -> None:
    with figures.panels(1, 1) as (figure, ((axes,),)):
        axes.plot([0.01, 10], [0.01, 10])
        figures.logarithmic(axes, which)
        figure.canvas.draw()
        axis = axes.xaxis if which == "x" else axes.yaxis
        assert axis.get_scale() == "log"
        shown = [label.get_text() for label in axis.get_majorticklabels()]
        assert {"0.01", "0.1", "1", "10"} <= set(shown)
        assert {label.get_text() for label in axis.get_minorticklabels()} <= {""}
