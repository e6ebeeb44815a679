"""A run killed at any moment and resumed with default flags is the uninterrupted one, bit for bit."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.killed import CASES, KILLS, assert_resumed_exactly, run_killed


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("killed")
    run_killed(out, "plain", CASES, KILLS)
    return out


@pytest.mark.parametrize("kill", KILLS)
@pytest.mark.parametrize("case", CASES)
def test_bit_for_bit(runs: Path, case: str, kill: str) -> None:
    assert_resumed_exactly(runs / case, kill)


def test_the_compared_runs_are_steered(runs: Path) -> None:
    def seen(case: str) -> list[Any]:
        return list(json.loads((runs / case / "straight" / "rank0.json").read_text())["steps"].values())

    assert len({str(step) for step in seen("padam, control, shutoff, telemetry")}) > 3
    assert len({str(step) for step in seen("padam matched, control")}) > 2
    assert len({str(step) for step in seen("sgd, shutoff")}) == 2
