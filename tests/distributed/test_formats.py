"""Moments in fewer bits are rounded alike however they are sharded, and checkpoints go from one launch to another."""

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.launching import launch

pytestmark = pytest.mark.distributed

SETTINGS: dict[str, dict[str, Any]] = {
    "16bit": {"state_dtype": "16bit"},
    "8_16bit, fused": {"state_dtype": "8_16bit", "fused": True},
    "8_16bit, amsgrad": {"state_dtype": "8_16bit", "amsgrad": True},
    "16bit, corrected": {"state_dtype": "16bit", "weight_correction": True},
}


def test_shards_are_rounded_as_the_whole_and_resumed_in_another_launch(tmp_path: Path) -> None:
    """Two processes of FSDP2, one process, and those that go on from the checkpoints of the others.

    Moments bit for bit; parameters to 1e-6, since the ends of shards are computed by other instructions.
    """

    def cases(load: str | None, save: str | None) -> dict[str, Any]:
        folders = [
            [None if folder is None else str(tmp_path / f"{folder} {name}") for folder in (load, save)]
            for name in SETTINGS
        ]
        return {name: [settings, *pair] for (name, settings), pair in zip(SETTINGS.items(), folders, strict=True)}

    two = launch(2, "formats_worker", tmp_path / "two", cases(None, "checkpoint"))
    (one,) = launch(1, "formats_worker", tmp_path / "one", cases(None, "of one"))
    (from_two,) = launch(1, "formats_worker", tmp_path / "from two", cases("checkpoint", None))
    (from_one,) = launch(1, "formats_worker", tmp_path / "from one", cases("of one", None))
    two_from_one = launch(2, "formats_worker", tmp_path / "two from one", cases("of one", None))
    for name, settings in SETTINGS.items():
        assert two[0][name]["shards"] >= 8 and one[name]["shards"] == 0
        assert ("torch.int8" in one[name]["dtypes"]) == (settings["state_dtype"] == "8_16bit")
        assert from_one[name]["moments"] != one[name]["moments"]
        for expected, runs in ((one, two), (from_one, [from_two, *two_from_one])):
            for run in runs:
                assert run[name]["moments"] == expected[name]["moments"]
                for found, params in zip(run[name]["parameters"], expected[name]["parameters"], strict=True):
                    assert found == pytest.approx(params, rel=1e-6, abs=1e-6)
