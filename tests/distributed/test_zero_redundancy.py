"""torch's ZeroRedundancyOptimizer around Padam: what needs the whole gradient is refused, the rest trains alike."""

from pathlib import Path

import pytest

from tests.distributed.launching import launch

pytestmark = pytest.mark.distributed

CASES = {
    "plain": {"p": 0.3},
    "matched": {"p": 0.3, "update_scale": "adam"},
    "skip": {"nonfinite": "skip"},
}


def test_what_needs_the_whole_gradient_is_refused(tmp_path: Path) -> None:
    for rank in launch(2, "zero_redundancy_worker", tmp_path / "out", CASES):
        assert rank["plain"]["error"] is None
        assert rank["plain"]["partitioned"] == pytest.approx(rank["plain"]["whole"], rel=1e-6)
        because = "and ZeroRedundancyOptimizer has each rank step a part of it. Use ZeRO, DDP or FSDP2"
        for case, setting in (("matched", 'update_scale="adam"'), ("skip", 'nonfinite="skip"')):
            assert rank[case]["error"].startswith(setting)
            assert because in rank[case]["error"]
            assert rank[case]["partitioned"] == rank[case]["start"]
