"""The same training in one process and in two over gloo: the same statistics, decisions and weights."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers
from packaging.version import Version

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.distributed

# Sums over processes come in another order, in float32: relative differences stay below this.
TOLERANCE = 1e-5

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}


def launch(processes: int, worker: str, out: Path, cases: dict[str, Any]) -> list[dict[str, Any]]:
    """Run a worker's cases in so many processes and return the reports of each rank, case by case."""
    out.mkdir()
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [*(torchrun if processes > 1 else []), "-m", f"tests.distributed.{worker}", str(out), json.dumps(cases)]
    result = subprocess.run([sys.executable, *command], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    ranks = [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(processes)]
    for rank in ranks:
        assert {report["world_size"] for report in rank.values()} == {processes}
    return ranks


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


TRAINERS: dict[str, dict[str, Any]] = {
    "padam p=.5": {"optim_args": "p=0.5"},
    "padam p=.25 matched": {"optim_args": "p=0.25,update_scale=adam"},
    "sgd and shutoff": {"optim": "sgd"},
    "clipping at every step": {"optim_args": "p=0.4", "max_grad_norm": 0.01},
    "accumulation": {"optim_args": "p=0.5", "gradient_accumulation_steps": 2},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    out = tmp_path_factory.mktemp("trainer")
    return {processes: launch(processes, "trainer_worker", out / str(processes), TRAINERS) for processes in (1, 2)}


@pytest.mark.parametrize("name", TRAINERS)
def test_ddp_equals_one_process(trained: dict[int, list[dict[str, Any]]], name: str) -> None:
    one, ranks = trained[1][0][name], [rank[name] for rank in trained[2]]
    for report in ranks:
        assert report["wrapper"] == "DistributedDataParallel"
        assert report["p"] == ranks[0]["p"]  # bit for bit
        assert report["p"] == pytest.approx(one["p"])
        assert_close(report["logs"], one["logs"])
        assert_close(report["weights"], one["weights"])


def test_the_compared_decisions_move_p(trained: dict[int, list[dict[str, Any]]]) -> None:
    assert any(len(set(report["p"])) > 1 for report in trained[1][0].values())


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"),
    reason="transformers 5.2 normalises accumulated losses otherwise, with stock AdamW too",
)
def test_accumulation_equals_one_batch(trained: dict[int, list[dict[str, Any]]]) -> None:
    for processes in (1, 2):
        reports = trained[processes][0]
        assert_close(reports["accumulation"]["weights"], reports["padam p=.5"]["weights"])
        assert reports["accumulation"]["p"] == reports["padam p=.5"]["p"]


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
