import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from papers._claims import sweep
from papers._claims.options import Options
from papers._claims.rows import Rows
from papers._claims.sweep import WorkTogether, run_all
from tests.distributed.launching import ROOT

CONFIGURATIONS = [{"x": x, "seed": 0} for x in range(5)]


def work(configuration: dict[str, Any], options: Options) -> dict[str, Any]:
    return {"square": configuration["x"] ** 2, "process": os.getpid()}


def fails_at_three(configuration: dict[str, Any], options: Options) -> dict[str, Any]:
    if configuration["x"] == 3:
        raise RuntimeError("three")
    return work(configuration, options)


@pytest.mark.parametrize("jobs", [1, 2])
def test_rows_come_in_the_order_of_configurations(
    options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str], jobs: int
) -> None:
    given = dataclasses.replace(options, jobs=jobs)
    rows = Rows(tmp_path / "rows.jsonl")
    found = run_all(CONFIGURATIONS, work, rows, given, "squares")
    assert [row["result"]["square"] for row in found] == [0, 1, 4, 9, 16]
    assert (os.getpid() in {row["result"]["process"] for row in found}) == (jobs == 1)
    assert "squares: 5 of 5 runs to do" in capsys.readouterr().out
    again = run_all(CONFIGURATIONS, fails_at_three, Rows(tmp_path / "rows.jsonl"), given, "squares")
    assert again == found
    assert "0 of 5 runs to do" in capsys.readouterr().out


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_was_finished_before_a_failure_stays(options: Options, tmp_path: Path, jobs: int) -> None:
    given = dataclasses.replace(options, jobs=jobs)
    with pytest.raises(RuntimeError, match="three"):
        run_all(CONFIGURATIONS, fails_at_three, Rows(tmp_path / "rows.jsonl"), given, "squares")
    kept = Rows(tmp_path / "rows.jsonl")
    assert kept.of(CONFIGURATIONS[3]) is None
    if jobs == 1:
        assert len(kept) == 3
    assert len(run_all(CONFIGURATIONS, work, kept, given, "squares")) == 5


def is_running(process: int) -> bool:
    """Whether it is there, and no zombie that nobody has asked about."""
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] not in "ZX"


def test_a_killed_claim_goes_on_where_it_was(tmp_path: Path) -> None:
    command = [sys.executable, "recipes/claim.py", "residual_update", "--output_dir", str(tmp_path)]
    command += ["--jobs", "2"]
    path = tmp_path / "residual_update" / "rows.jsonl"
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while (not path.exists() or path.read_text().count("\n") < 3) and time.monotonic() < deadline:
        time.sleep(0.02)
    workers = {int(child) for child in Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()}
    running.kill()
    running.wait()
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(workers) >= 2 and not any(map(is_running, workers))
    finished = path.read_text().count("\n")
    assert 3 <= finished < 80
    assert not (tmp_path / "residual_update" / "verdict.json").exists()
    before = path.read_text().splitlines()[:finished]
    resumed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert resumed.returncode == 0, resumed.stderr
    assert f"residual_update: {80 - finished} of 80 runs to do" in resumed.stdout
    assert path.read_text().splitlines()[:finished] == before
    assert len(Rows(path)) == path.read_text().count("\n") == 80
    assert "verdict:  identity (" in resumed.stdout
    assert (tmp_path / "residual_update" / "figure.png").stat().st_size > 10_000


def squares_together(configurations: Sequence[dict[str, Any]], options: Options) -> list[dict[str, Any]]:
    return [{"square": one["x"] ** 2, "beside": len(configurations)} for one in configurations]


def test_runs_that_are_done_together(options: Options, tmp_path: Path) -> None:
    given = dataclasses.replace(options, jobs=1, together=2)
    found = run_all(CONFIGURATIONS, WorkTogether(squares_together), Rows(tmp_path / "rows.jsonl"), given, "squares")
    assert [(row["result"]["square"], row["result"]["beside"]) for row in found] == [
        (0, 2), (1, 2), (4, 2), (9, 2), (16, 1),
    ]  # fmt: skip


def takes_a_while(configuration: dict[str, Any], options: Options) -> dict[str, Any]:
    time.sleep(0.5)
    return {}


@pytest.mark.parametrize("jobs", [1, 2])
def test_no_run_begins_that_would_end_too_late(
    options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    monkeypatch.setattr(sweep, "STARTED", time.monotonic())
    given = dataclasses.replace(options, jobs=jobs, minutes=1e-6)
    assert run_all(CONFIGURATIONS, work, Rows(tmp_path / "rows.jsonl"), given, "squares") == []
    given = dataclasses.replace(options, jobs=1, minutes=0.8 / 60)
    monkeypatch.setattr(sweep, "STARTED", time.monotonic())
    found = run_all(CONFIGURATIONS, takes_a_while, Rows(tmp_path / "rows.jsonl"), given, "naps")
    assert [row["configuration"]["x"] for row in found] == [0]
