"""The metric module, loaded as a script loads it: from its directory, without a network."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import json, math, sys, evaluate
metric = evaluate.load(sys.argv[1])
whole = metric.compute(losses=[1.0, 2.0, 9.0, math.inf], correct=[True, True, False, False])
metric.add_batch(losses=[1.0, 2.0])
metric.add_batch(losses=[9.0])
print(json.dumps([whole, metric.compute()]))
"""


def test_the_metric_is_the_summary(tmp_path: Path) -> None:
    pytest.importorskip("evaluate")
    # In a process of its own: evaluate reads HF_HOME, where it writes, at its import.
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(ROOT / "recipes" / "metrics" / "sample_loss")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    # By hand: of 1, 2, 9 the mean is 4 and the variance (9 + 4 + 25) / 3; p50 of four is between 2 and 9.
    finite = '"mean": 4.0, "std": 3.559026084010437, '
    assert result.stdout.strip().splitlines()[-1] == (
        f'[{{"count": 4, "accuracy": 0.5, {finite}"p50": 5.5, "p95": Infinity, "p99": Infinity, '
        '"share_above_5": 0.5, "nonfinite": 1}, '
        f'{{"count": 3, {finite}"p50": 2.0, "p95": 8.299999999999999, "p99": 8.86, '
        '"share_above_5": 0.3333333333333333, "nonfinite": 0}]'
    )
