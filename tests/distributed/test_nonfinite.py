"""NaN that only one process sees: all of them skip the step."""

from pathlib import Path

import pytest

from tests.distributed.launching import launch

pytestmark = pytest.mark.distributed


def test_all_processes_skip_what_one_of_them_sees(tmp_path: Path) -> None:
    for rank in launch(2, "nonfinite_worker", tmp_path / "out", {}):
        report = rank["nan in one shard"]
        assert report["skipped"] == [False, True, True, False]
        before, first_bad, second_bad, after = report["weights"]
        assert before == first_bad == second_bad
        assert before != after
        assert report["steps"] == [2.0]
