"""Curves over p: what is drawn of a run's moments."""

import math
from pathlib import Path
from typing import Any

import pytest

from hf_pdyn.policy.allocation_curve import COUNT, EXPONENTS
from hf_pdyn.report.charts import sections
from hf_pdyn.report.reading import read_runs
from hf_pdyn.run_dir.tables import ALLOCATION, TableWriter
from tests.report.runs import log_moments, make_run, write_state

WEIGHT, BIAS_LIKE = {"level": -16.0, "spread": 1.5, "size": -8.0}, {"level": -12.0, "spread": 1.0, "size": -10.0}


def curve(step: int, pathway: str, p: float | None, moments: list[float]) -> dict[str, Any]:
    return {"step": step, "epoch": None, "pathway": pathway, "p": p, "log_moments": moments}


def pathways(step: int, p: float | None = 0.4) -> list[dict[str, Any]]:
    both = (("weight", WEIGHT), ("bias_like", BIAS_LIKE))
    return [curve(step, pathway, p, log_moments(**settings)) for pathway, settings in both]


def drawn(path: Path, *curves: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """The allocation curves of a run that has these, by quantity; and whether steps were left out."""
    write_state(path, [{"step": 1, "loss": 1.0}])
    writer = TableWriter(path, ALLOCATION)
    writer.add(curves)
    writer.flush()
    found, drawing = sections(read_runs([path]))
    (section,) = (section for section in found if section.key == "allocation")
    return {chart.key.split("-")[1]: chart for chart in section.charts}, drawing.thinned_evenly


def lines(chart: Any) -> dict[int, dict[float, float]]:
    """By step, by p."""
    rows = (row for row in chart.spec["data"]["values"] if not row.get("own"))
    return {row["step"]: dict(zip(row["p"], row["value"], strict=True)) for row in rows}


def dots(chart: Any) -> dict[int, tuple[float, float]]:
    rows = (row for row in chart.spec["data"]["values"] if row.get("own"))
    return {row["step"]: (*row["p"], *row["value"]) for row in rows}


def log_norm(p: float, level: float, spread: float, size: float) -> float:
    """log ||u(p)|| where v_hat is log-normal."""
    return size / 2 - p * level + (p * spread) ** 2


def norm(p: float) -> float:
    return math.hypot(*(math.exp(log_norm(p, **settings)) for settings in (WEIGHT, BIAS_LIKE)))


def test_the_curves_are_those_of_the_moments(tmp_path: Path) -> None:
    charts, _ = drawn(tmp_path, *pathways(10))
    (balance,), (factor,), (cosine,) = (lines(charts[name]).values() for name in ("balance", "lr_factor", "cosine"))
    assert list(balance) == list(factor) == list(cosine) == pytest.approx([s / 2 for s in EXPONENTS])
    for p in (-0.4, 0.0, 0.25, 0.5, 1.0):
        log_ratio = log_norm(p, **WEIGHT) - log_norm(p, **BIAS_LIKE)
        assert balance[p] == pytest.approx(math.exp(log_ratio), rel=1e-4)
        assert factor[p] == pytest.approx(norm(0.5) / norm(p), rel=1e-4)
        assert cosine[p] == pytest.approx(norm((p + 0.5) / 2) ** 2 / norm(0.5) / norm(p), rel=1e-4)
    assert factor[0.5] == cosine[0.5] == 1
    assert charts["lr_factor"].spec["encoding"]["y"]["scale"]["type"] == "log"


def test_the_run_s_own_p_lies_on_its_curve(tmp_path: Path) -> None:
    charts, _ = drawn(tmp_path, *pathways(10, p=0.4), *pathways(20, p=0.25), *pathways(30, p=0.375))
    for chart in charts.values():
        for step, (p, value) in dots(chart).items():
            assert p == {10: 0.4, 20: 0.25, 30: 0.375}[step] and value == lines(chart)[step][p]
        assert len(dots(chart)) == 3
    assert "At step 30, p = 0.375 gives 14.5, Adam 27.5." in charts["balance"].note


@pytest.mark.parametrize("p", [None, math.nan, 1.5])
def test_a_p_beyond_the_curve_has_no_dot(tmp_path: Path, p: float | None) -> None:
    charts, _ = drawn(tmp_path, *pathways(10, p))
    assert len(charts) == 3 and all(dots(chart) == {} and "At step" not in chart.note for chart in charts.values())


def test_about_a_dozen_steps_are_drawn(tmp_path: Path) -> None:
    few, left_out = drawn(tmp_path / "few", *(row for step in range(12) for row in pathways(step)))
    assert list(lines(few["balance"])) == list(range(12)) and not left_out
    many, left_out = drawn(tmp_path / "many", *(row for step in range(111) for row in pathways(step)))
    assert list(lines(many["balance"])) == list(range(0, 111, 10)) and left_out


@pytest.mark.parametrize("steps", [(10,), (10, 20)])
def test_the_colour_is_the_step_with_a_legend_where_there_are_several(tmp_path: Path, steps: tuple[int, ...]) -> None:
    charts, _ = drawn(tmp_path, *(row for step in steps for row in pathways(step)))
    encodings = [layer.get("encoding", {}).get("color", {}) for layer in charts["balance"].spec["layer"]]
    line, dot = (colour for colour in encodings if "field" in colour)
    assert line == dot and line["field"] == "step" and bool(line["legend"]) == (len(steps) > 1)


def test_of_one_pathway_there_is_no_balance(tmp_path: Path) -> None:
    charts, _ = drawn(tmp_path, *pathways(10)[:1])
    assert charts.keys() == {"lr_factor", "cosine"}
    assert lines(charts["cosine"])[10][0.5] == 1


def test_extreme_moments_are_drawn(tmp_path: Path) -> None:
    """Whatever passes for moments, no chart holds what JSON has no number for."""
    extreme = [curve(20, "weight", 0.4, [700.0] * COUNT), curve(20, "bias_like", 0.4, [-700.0] * COUNT)]
    charts, _ = drawn(tmp_path, *pathways(10), *extreme)
    assert lines(charts["balance"])[20][1.0] == pytest.approx(math.exp(700), rel=1e-4)
    assert all(math.isfinite(value) for chart in charts.values() for value in lines(chart)[20].values())


def test_every_run_has_curves_of_its_own(tmp_path: Path) -> None:
    found, _ = sections(read_runs([make_run(tmp_path / name, records=2) for name in "ab"]))
    (section,) = (section for section in found if section.key == "allocation")
    own = [(chart.run, chart.part) for chart in section.charts if chart.run]
    assert own == [(run, "pathways") for run in "ab" for _ in range(3)]
