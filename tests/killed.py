"""Runs of `tests.scripts.killed_trainer` against the uninterrupted one."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.distributed.launching import ENVIRONMENT, ROOT

CASES = ("padam, control, shutoff, telemetry", "padam matched, control", "sgd, shutoff", "adamw, shutoff, telemetry")

# Where a run is killed: the step whose checkpoint it is then resumed from, and what is said of the one of step 16.
KILLS: dict[str, tuple[int, str | None]] = {
    "in an interval": (16, None),
    "in the model": (8, "no trainer_state.json"),
    "before the optimizer": (8, "no trainer_state.json"),
    "in the optimizer": (8, "no trainer_state.json"),
    "before the state": (8, "no trainer_state.json"),
    "in the state": (8, "trainer_state.json is cut off"),
    "after the state": (16, None),
    "over an earlier checkpoint": (8, "no trainer_state.json"),
}


def run_killed(out: Path, launch: str, cases: Sequence[str], kills: Iterable[str]) -> None:
    names = json.dumps(list(cases)), json.dumps(list(kills))
    command = [sys.executable, "-m", "tests.scripts.killed_trainer", str(out), launch, *names]
    result = subprocess.run(
        command, cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr[-4000:]


def assert_resumed_exactly(case: Path, kill: str, rank: int = 0) -> dict[str, Any]:
    """Weights, records and settings of each step, bit for bit; returns what the resumed run reported."""
    straight, resumed = (json.loads((case / run / f"rank{rank}.json").read_text()) for run in ("straight", kill))
    step, reason = KILLS[kill]
    assert resumed["world_size"] == straight["world_size"]
    passed_over = [text for text in resumed["warnings"] if "passed over" in text]
    if reason is None:
        assert passed_over == []
    else:
        assert len(passed_over) == 1
        assert f"checkpoint-16 ({reason}); checkpoint-{step} is used" in passed_over[0]
    assert not [text for text in resumed["warnings"] if "anew" in text]

    expected_steps = {key: value for key, value in straight["steps"].items() if int(key) > step}
    assert resumed["steps"] == expected_steps  # from the first resumed step on: its p and weight decay
    assert resumed["weights"] == straight["weights"]
    # The Trainer's own running loss starts anew with the first resumed step, so its first mean is over fewer steps.
    for logs in (resumed["logs"], straight["logs"]):
        logs[step // 5].pop("loss")
    assert resumed["logs"] == straight["logs"]
    assert len(resumed["logs"]) == 4
    return resumed
