"""Rows of allocation curves as moments by label and step."""

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from hf_pdyn.policy.allocation_curve import COUNT, PowerMoments, update_ratio
from hf_pdyn.report.allocation_curves import AllocationCurves
from hf_pdyn.report.reading import read_runs
from hf_pdyn.run_dir.tables import ALLOCATION
from tests.report.runs import log_moments, make_run


def row(step: int | None = 10, **columns: Any) -> dict[str, Any]:
    curve = {"pathway": "weight", "component": None, "layer": None, "p": 0.4, "log_moments": log_moments(-12, 1)}
    return {"step": step, "epoch": None, **curve, **columns}


def curves(*rows: dict[str, Any]) -> AllocationCurves:
    return AllocationCurves.of(pa.Table.from_pylist(list(rows), schema=ALLOCATION.schema))


def test_the_curves_of_a_run_by_step_and_label(tmp_path: Path) -> None:
    (run,) = read_runs([make_run(tmp_path / "a", records=3)])
    found = AllocationCurves.of(run.allocation)
    assert found.steps == [10, 20, 30] and [found.p_at(step) for step in found.steps] == [0.4, 0.4 + 0.02, 0.44]
    assert found.at(20) == {
        "weight": PowerMoments(tuple(log_moments(-16.1, 1.5, -8))),
        "weight/attention": PowerMoments(tuple(log_moments(-15, 1.5, -9))),
        "bias_like": PowerMoments(tuple(log_moments(-12, 1.0, -10))),
    }
    # log U is size/2 - p level + (p spread)^2, of each pathway.
    expected = math.exp((-8 + 10) / 2 + 0.4 * (16.1 - 12) + 0.4**2 * (1.5**2 - 1))
    assert update_ratio(found.at(20)["weight"], found.at(20)["bias_like"], 0.4) == pytest.approx(expected, 1e-9)


@pytest.mark.parametrize(
    "damage",
    [
        {"step": None},
        {"pathway": None},
        {"log_moments": None},
        {"log_moments": []},
        {"log_moments": [1.0] * (COUNT - 1)},
        {"log_moments": [1.0] * (COUNT + 1)},
        {"log_moments": [1.0] * (COUNT - 1) + [math.nan]},
        {"log_moments": [1.0] * (COUNT - 1) + [-math.inf]},
        {"log_moments": [1.0] * (COUNT - 1) + [None]},
        {"log_moments": [1e300] * COUNT},  # exp of it is no float
        {"log_moments": [1.0] * (COUNT - 3) + [3.0, 1.0, 1.0]},  # flipped bits: M is log-convex
        {"layer": "h.0"},
    ],
)
def test_what_is_no_curve_of_a_label_is_left_out(damage: dict[str, Any]) -> None:
    found = curves(row(20) | damage, row(pathway="bias_like"))
    assert found.steps == [10] and found.at(10).keys() == {"bias_like"} and found.at(20) == {}


def test_without_any_row_there_is_no_step() -> None:
    assert curves().steps == [] and curves().p_at(10) is None


@pytest.mark.parametrize("p", [None, math.nan, math.inf])
def test_a_p_that_is_not_known_loses_no_curve(p: float | None) -> None:
    found = curves(row(p=p), row(20, p=p), row(20, pathway="bias_like"))
    assert found.steps == [10, 20] and found.p_at(10) is None and found.p_at(20) == 0.4


def test_of_two_rows_of_a_label_the_last_counts() -> None:
    again = log_moments(-14, 1)
    assert curves(row(), row(log_moments=again)).at(10) == {"weight": PowerMoments(tuple(again))}
