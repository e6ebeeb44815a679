"""Two DDP processes over gloo, killed and resumed with default flags: the uninterrupted run, bit for bit."""

import json
from pathlib import Path

import pytest

from tests.killed import CASES, assert_resumed_exactly, run_killed

pytestmark = pytest.mark.distributed

KILLED = ("in an interval", "in the optimizer", "after the state")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("killed")
    run_killed(out, processes=2, kills=list(KILLED))
    return out


@pytest.mark.parametrize("kill", KILLED)
@pytest.mark.parametrize("case", CASES)
def test_bit_for_bit(runs: Path, case: str, kill: str) -> None:
    for rank in (0, 1):
        resumed = assert_resumed_exactly(runs / case, kill, rank)
        assert resumed["world_size"] == 2
        assert resumed["wrapper"] == "DistributedDataParallel"


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_is_complete_when_every_process_has_written(runs: Path, case: str) -> None:
    written = json.loads((runs / case / "after the state" / "files.json").read_text())
    assert "checkpoint-16/trainer_state.json" in written
    assert "checkpoint-16/rng_state_1.pth" in written  # its process was half a second behind
