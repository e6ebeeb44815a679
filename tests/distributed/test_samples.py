"""Sample losses of two processes are those of one, in the order of the data set."""

from pathlib import Path

import pytest

from hf_pdyn.measure.sample_loss import epochs, read_epoch
from hf_pdyn.run_dir.tables import SAMPLE_LOSSES
from tests.distributed.launching import launch
from tests.distributed.matrix import LAUNCHES, TOLERANCE, why_impossible
from tests.distributed.samples_worker import train

pytestmark = pytest.mark.distributed

SPLITS = {"train": [0, 9, 18, 27, 36, 45, 54], "test/many": list(range(13)), "test/one": [0]}


@pytest.mark.parametrize("name", ["DDP", "FSDP2"])
def test_two_processes_measure_what_one_does(tmp_path: Path, name: str) -> None:
    reason = why_impossible(name)
    if reason:
        pytest.skip(reason)
    options = LAUNCHES[name].options
    cases = {
        "whole": options,
        "without": {**options, "measures": False},
        "failing": {**options, "fails": True},
        "losing": {**options, "loses": True},
        "unswitched": {**options, "switches": False},
    }
    ranks = launch(2, "samples_worker", tmp_path / "out", cases)
    train(tmp_path / "expected", {})
    for split, indices in SPLITS.items():
        ours, expected = (read_epoch(tmp_path / run, split) for run in ("out/whole", "expected"))
        assert ours.index.tolist() == indices
        assert ours.loss == pytest.approx(expected.loss, rel=TOLERANCE)
    assert epochs(tmp_path / "out" / "whole") == [1.0, 1.5]
    assert len(list(SAMPLE_LOSSES.folder(tmp_path / "out" / "whole").iterdir())) == 2
    assert ranks[0]["whole"]["logged"] == ranks[1]["whole"]["logged"] != []
    for rank in ranks:
        assert all(rank[name]["weights"] == rank["whole"]["weights"] for name in cases)

    # What one process cannot read, none of them goes on with: said once, and the others' splits are whole.
    assert [rank["failing"]["steps"] for rank in ranks] == [12, 12]
    assert ranks[1]["failing"]["said"] == []
    (said,) = ranks[0]["failing"]["said"]
    assert "of test/many: OSError: no such sample, on process 1" in said
    for split in ("train", "test/one"):
        failing, whole = (read_epoch(tmp_path / "out" / run, split) for run in ("failing", "whole"))
        assert failing.loss.tolist() == whole.loss.tolist()
    with pytest.raises(ValueError, match="test/many"):
        read_epoch(tmp_path / "out" / "failing", "test/many")

    # So it is with what fails before the first forward pass.
    gone = [
        f"of {split}: LookupError: the Trainer has no such data set any more" for split in ("test/many", "test/one")
    ]
    for name, messages in {"losing": gone, "unswitched": ["of train: MemoryError: none left"]}.items():
        assert [rank[name]["steps"] for rank in ranks] == [12, 12] and ranks[1][name]["said"] == []
        for message, told in zip(messages, ranks[0][name]["said"], strict=True):
            assert f"{message}, on process 1" in told
