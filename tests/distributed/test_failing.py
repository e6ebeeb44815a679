"""Measuring that fails on one process: the training goes on, on all of them, with one p."""

from pathlib import Path

import pytest

from tests.distributed.launching import launch
from tests.distributed.matrix import LAUNCHES, why_impossible

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("name", ["DDP", "FSDP2"])
def test_no_process_waits_for_one_that_failed(tmp_path: Path, name: str) -> None:
    reason = why_impossible(name)
    if reason:
        pytest.skip(reason)
    options = LAUNCHES[name].options
    cases = {"whole": {**options, "fails": False}, "failing": {**options, "fails": True}}
    first, second = launch(2, "failing_worker", tmp_path / "out", cases)
    assert first["failing"]["steps"] == second["failing"]["steps"] == 18
    assert first["failing"]["p"] == second["failing"]["p"]
    assert [len(rank["failing"]["said"]) for rank in (first, second)] == [0, 1]
    if name == "DDP":  # every process has whole gradients: rank 0 decides by its own
        assert first["failing"]["p"] == first["whole"]["p"]
        assert len(set(first["whole"]["p"])) > 1
    else:  # from the failure on, no step enters a sum
        assert first["failing"]["nonfinite"][-1] == 14
