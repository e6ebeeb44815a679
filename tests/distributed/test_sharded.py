"""Bare loops over FSDP2 meshes: shards add up to the whole."""

from typing import Any

import pytest

from tests.distributed.launching import launch
from tests.distributed.matrix import TOLERANCE

pytestmark = pytest.mark.distributed


def assert_close(ours: Any, expected: Any, path: str = "") -> None:
    if isinstance(expected, dict):
        assert ours.keys() == expected.keys(), path
        for key in expected:
            assert_close(ours[key], expected[key], f"{path}/{key}")
    elif isinstance(expected, list):
        assert len(ours) == len(expected), path
        for i, (a, b) in enumerate(zip(ours, expected, strict=True)):
            assert_close(a, b, f"{path}[{i}]")
    else:
        # A relative change is the difference of two numbers that are each good to TOLERANCE.
        assert ours == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE if path.endswith("_change") else 1e-9), path


SHARDED = {
    "FSDP2, padam": ((2,), "padam"),
    "FSDP2, sgd": ((2,), "sgd"),
    "HSDP of one shard, padam": ((2, 1), "padam"),
    "HSDP of one replica, padam": ((1, 2), "padam"),
}


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    out = tmp_path_factory.mktemp("sharded")
    return {processes: launch(processes, "sharded_worker", out / str(processes), SHARDED) for processes in (1, 2)}


@pytest.mark.parametrize("name", SHARDED)
def test_shards_add_up_to_the_whole(sharded: dict[int, list[dict[str, Any]]], name: str) -> None:
    one, ranks = sharded[1][0][name], [rank[name] for rank in sharded[2]]
    for report in ranks:
        assert report["sharded"] == len(report["weights"])  # DTensors, all of them
        # One for all steps, layers and quantities; none where nothing is sharded.
        assert report["reductions_of_a_reading"] == (0 if "of one shard" in name else 1)
        assert report["agreed"] == [0.0, 0.1]  # rank 0's, bit for bit
        for key in one.keys() - {"world_size", "sharded", "reductions_of_a_reading"}:
            assert_close(report[key], one[key], key)
