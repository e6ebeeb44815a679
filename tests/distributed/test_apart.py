"""Processes that train apart without the Trainer saying so: we do."""

from pathlib import Path

import pytest
import transformers
from packaging.version import Version

from tests.distributed.launching import launch

pytestmark = pytest.mark.distributed


def test_processes_that_train_apart_are_told(tmp_path: Path) -> None:
    cases = {"plain": (False, False), "evaluates first": (True, False), "controlled": (True, True)}
    ranks = launch(2, "apart_worker", tmp_path / "out", cases)
    for rank in ranks:
        assert rank["plain"]["wrapper"] == "DistributedDataParallel"
        assert rank["plain"]["said"] == []
        apart = rank["evaluates first"]["wrapper"] != "DistributedDataParallel"
        assert len(rank["evaluates first"]["said"]) == apart
        refused = str(rank["controlled"]["error"]).startswith("Algorithm 1 steers one training, and the processes of")
        assert refused == apart
    weights = [rank["evaluates first"]["weights"] for rank in ranks]
    assert (weights[0] != weights[1]) == apart
    if Version(transformers.__version__) == Version("5.23"):  # later ones may have mended it, 5.2 has not the fault
        assert apart
