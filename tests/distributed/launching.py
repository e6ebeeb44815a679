"""Starting workers: a module of this package in one process, or in those that torchrun connects."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    # torchrun starts workers elsewhere on the path, and some packages install a "tests" of their own.
    "PYTHONPATH": str(ROOT),
}
ON_CPU = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}


def start(
    worker: str,
    processes: int,
    out: Path,
    cases: dict[str, Any],
    *,
    torchrun: bool = False,
    devices: Mapping[str, str] = ON_CPU,
) -> None:
    """Run `python -m tests.distributed.WORKER OUT CASES` to its end; AssertionError with its last words if it fails.

    torchrun: that it starts a single worker, too; several always.
    devices: the environment that says which devices a worker sees; empty for those that this process sees.
    """
    out.mkdir(parents=True)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [
        *(launcher if torchrun or processes > 1 else []),
        "-m",
        f"tests.distributed.{worker}",
        str(out),
        json.dumps(cases),
    ]
    environment = {**os.environ, **ENVIRONMENT, **devices}
    result = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr[-6000:]


def launch(processes: int, worker: str, out: Path, cases: dict[str, Any]) -> list[dict[str, Any]]:
    """`start`, and the JSON reports of all ranks, case by case; asserts the number of processes."""
    start(worker, processes, out, cases)
    ranks = [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(processes)]
    for rank in ranks:
        assert {report["world_size"] for report in rank.values()} == {processes}
    return ranks
