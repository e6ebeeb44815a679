"""Bare loops over FSDP2 meshes: shards add up to the whole."""

from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer

from tests.distributed.launching import launch
from tests.distributed.matrix import TOLERANCE

pytestmark = [pytest.mark.distributed, pytest.mark.xdist_group("sharded")]


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
        # A relative change is the difference of two numbers that are each good to TOLERANCE, and eps_share a part of 1
        # that gradients make which are zero but for rounding.
        of_one = path.endswith("_change") or path.startswith("eps_share")
        assert ours == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE if of_one else 1e-9), path


# For each of the two blocks and for the rest: the shape of its mesh (replicas, shards), None where it stays whole.
SHARDED: dict[str, list[Any]] = {
    "FSDP2, padam": [[[2]] * 3, "padam"],
    "FSDP2, sgd": [[[2]] * 3, "sgd"],
    "HSDP of one shard, padam": [[[2, 1]] * 3, "padam"],
    "HSDP of one replica, padam": [[[1, 2]] * 3, "padam"],
    "three meshes, padam": [[[2], [2, 1], [1, 2]], "padam"],
    "half of it whole, sgd": [[[2], None, None], "sgd"],
}
if hasattr(Trainer, "_mixed_mesh_grad_norm"):  # not in transformers 5.2
    SHARDED |= {
        "three meshes, clipped": [[[2], [2, 1], [1, 2]], "padam", 0.01],
        "half of it whole, clipped": [[[2], None, None], "padam", 0.01],
    }


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    out = tmp_path_factory.mktemp("sharded")
    return {processes: launch(processes, "sharded_worker", out / str(processes), SHARDED) for processes in (1, 2)}


@pytest.mark.parametrize("name", SHARDED)
def test_shards_add_up_to_the_whole(sharded: dict[int, list[dict[str, Any]]], name: str) -> None:
    one, ranks = sharded[1][0][name], [rank[name] for rank in sharded[2]]
    meshes = [str(tuple(mesh)) if mesh else "whole" for mesh in SHARDED[name][0]]
    for report in ranks:
        assert report["meshes"] == sorted(set(meshes))
        # One for all steps, layers and quantities; none where nothing is sharded.
        assert report["reductions_of_a_reading"] == (0 if "of one shard" in name else 1)
        # A step of its own costs none; what is matched in size has its two numbers added up.
        matched = "padam" in SHARDED[name] and "of one shard" not in name
        assert report["reductions_of_steps"] == (4 if matched else 0)
        assert report["agreed"] == [0.0, 0.1]  # rank 0's, bit for bit
        for key in one.keys() - {"world_size", "meshes", "reductions_of_a_reading", "reductions_of_steps"}:
            assert_close(report[key], one[key], key)
        if "clipped" in name:
            assert report["grad_norm_clipped"]["None/weight"] < 0.01 < report["grad_norm"]["None/weight"]


def test_shards_of_tensor_parallel_parameters(tmp_path: Path) -> None:
    """Four processes, each with a quarter: its placement there is not of torch's class Shard."""
    for rank in launch(4, "tensor_parallel_worker", tmp_path / "out", {}):
        report = rank["FSDP2 x TP"]
        assert "_StridedShard" in report["kinds"]
        assert report["parallel"] == pytest.approx(report["whole"], rel=TOLERANCE)
