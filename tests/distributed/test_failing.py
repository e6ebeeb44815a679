"""Measuring that fails on one process: the training goes on, on all of them, with one p."""

from pathlib import Path

import pytest

from tests.distributed.launching import launch
from tests.distributed.matrix import LAUNCHES, why_impossible

pytestmark = pytest.mark.distributed


CASES = ("whole", "statistics", "telemetry", "control", "allocation")


@pytest.mark.parametrize("name", ["DDP", "FSDP2"])
def test_no_process_waits_for_one_that_failed(tmp_path: Path, name: str) -> None:
    reason = why_impossible(name)
    if reason:
        pytest.skip(reason)
    options = LAUNCHES[name].options
    cases = {fails: {**options, "fails": fails} for fails in CASES}
    first, second = launch(2, "failing_worker", tmp_path / "out", cases)
    assert first["statistics"]["steps"] == second["statistics"]["steps"] == 18
    assert first["statistics"]["p"] == second["statistics"]["p"]
    assert [len(rank["statistics"]["said"]) for rank in (first, second)] == [0, 1]
    if name == "DDP":  # every process has whole gradients: rank 0 decides by its own
        assert first["statistics"]["p"] == first["whole"]["p"]
        assert len(set(first["whole"]["p"])) > 1
    else:  # from the failure on, no step enters a sum
        assert first["statistics"]["nonfinite"][-1] == 14

    # A failure of the callback itself: its metrics end there, the others' do not.
    assert first["telemetry"]["steps"] == second["telemetry"]["steps"] == 18
    assert [len(rank["telemetry"]["said"]) for rank in (first, second)] == [0, 1]
    assert first["telemetry"]["p"] == second["telemetry"]["p"] == first["whole"]["p"]
    assert first["telemetry"]["D_w"] == first["whole"]["D_w"]
    assert [value is None for value in second["telemetry"]["D_w"]] == [False] + [True] * 5

    # Of control and of the allocation curve: rank 0's word goes on holding.
    for fails in ("control", "allocation"):
        assert first[fails]["steps"] == second[fails]["steps"] == 18
        assert [len(rank[fails]["said"]) for rank in (first, second)] == [0, 1]
        assert first[fails]["p"] == second[fails]["p"] == first["whole"]["p"]
