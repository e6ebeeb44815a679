"""Real runs of claims 1 to 3, cut short, and a launch of two processes."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.elastic.utils.distributed import get_free_port

from papers._claims.options import Options
from papers._claims.rows import Rows
from papers.allocation import (
    path_allocation,
    residual_update,
    sparse_gain,
)
from tests.distributed.launching import ENVIRONMENT, ROOT
from tests.recipes.papers import launched_claim

LAUNCHED = Path(launched_claim.__file__)


def first(module: Any, options: Options, **wanted: Any) -> dict[str, Any]:
    return next(c for c in module.CLAIM.configurations(options) if wanted.items() <= c.items())


def test_residual_update(options: Options) -> None:
    result = residual_update.run({**first(residual_update, options, p=0.3), "steps": 3}, options)
    assert result["largest_error"] < residual_update.TOLERANCE
    assert 0 < result["weight_share"] < 1


def test_path_shares_are_those_of_the_updates(options: Options) -> None:
    """With p = 0 a first update goes along the gradients, whose share can be computed by hand: float32, 1e-4."""
    configuration = {**first(path_allocation, options, p=0.0, pi=1.0, update_scale="raw"), "steps": 1}
    configuration |= {"batch_size": configuration["samples"]}
    result = path_allocation.run(configuration, options)
    generator = torch.Generator().manual_seed(configuration["seed"])
    d, k, n = 64, 8, 1024
    X = path_allocation.sparse_inputs(torch.ones(d), n, generator)  # noqa: N806
    target = X @ torch.randn(d, k, generator=generator) / d**0.5 + torch.randn(k, generator=generator)
    target += 0.5 * torch.randn(target.shape, generator=generator)
    by_weight = torch.linalg.vector_norm(X @ (X.T @ target) / n)
    by_bias = torch.linalg.vector_norm(target.mean(0)) * n**0.5
    assert result["share"] == pytest.approx(float(by_weight / (by_weight + by_bias)), rel=1e-4)
    assert result["share"] == result["first_share"]


def test_sparse_gains_have_the_slope_of_theory(options: Options) -> None:
    """Of 8,192 samples the rarest of eight inputs is active in 41: log gains are good to 0.2 there, to 0.02 at most."""
    configuration = first(sparse_gain, options, case="noise", p=0.5)
    result = sparse_gain.run(configuration, options)
    assert result["slope"] == pytest.approx(-0.5, abs=0.05)
    expected = sparse_gain.expected_gain("noise", 0.5, configuration["eps"]).numpy()
    np.testing.assert_allclose(result["log_gain"], expected, atol=0.3)


@pytest.mark.parametrize("case", ["eps 0.01", "correlated"])
def test_where_slopes_break(options: Options, case: str) -> None:
    configuration = {**first(sparse_gain, options, case=case, p=0.5), "steps": 400}
    result = sparse_gain.run(configuration, options)
    expected = sparse_gain.expected_gain(case, 0.5, configuration["eps"]).numpy()
    np.testing.assert_allclose(result["log_gain"], expected, atol=0.3)
    # Between a rare and a middle level flatter than -p where eps dominates; at the active end steeper where inputs
    # correlate.
    low, high = (-4, -1) if case == "correlated" else (0, 5)
    width = (high - low) * -math.log(0.005) / (sparse_gain.LEVELS - 1)
    slope = (result["log_gain"][high] - result["log_gain"][low]) / width
    assert (slope < -0.6) if case == "correlated" else (slope > -0.4)


@pytest.mark.distributed
def test_two_processes_train_together_and_one_writes(tmp_path: Path, options: Options) -> None:
    """The row that one process has, up to float32 sums in another order: 1e-4 after 20 steps."""
    address = ["--nproc_per_node", "2", "--master_port", str(get_free_port())]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "recipes")])
    own = {"PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": "", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    launched = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *address, str(LAUNCHED), str(tmp_path)],
        env=os.environ | ENVIRONMENT | own,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert launched.returncode == 0, launched.stderr[-3000:]
    assert launched.stdout.count("3 of 3 runs to do") == 1
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    rows = Rows(tmp_path / "rows.jsonl")
    layer = {**path_allocation.configurations(options)[0], "steps": 20}
    assert rows.of(layer)["hardware"].endswith("2 processes")
    assert rows.of(layer)["result"]["share"] == pytest.approx(path_allocation.run(layer, options)["share"], rel=1e-4)
    fine_tuned = [json.loads(line)["result"] for line in lines[1:]]
    assert [result["diverged"] for result in fine_tuned] == [False, False]
    for result in fine_tuned:
        assert [step for step, _ in result["curves"]["pdyn/p"]] == [5, 10]
    assert fine_tuned[0]["curves"] != fine_tuned[1]["curves"]
