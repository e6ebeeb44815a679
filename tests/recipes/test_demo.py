"""The demo as its user runs it, at the smallest useful size."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TINY = {
    "pretrain_steps": 8,
    "block_size": 32,
    "max_train_blocks": 96,
    "max_validation_blocks": 16,
    "max_steps": 24,
    "eval_steps": 6,
    "logging_steps": 6,
    "sample_tokens": 8,
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """The demo's output, in a copy of the repository whose environment is this test's."""
    pytest.importorskip("vl_convert")
    root = tmp_path_factory.mktemp("demo")
    (root / "scripts").mkdir()
    (root / "scripts" / "environment").write_text(f"echo {shlex.quote(sys.executable)}\n")
    (root / "scripts" / "demo").write_text((ROOT / "scripts" / "demo").read_text())
    (root / "recipes").symlink_to(ROOT / "recipes")
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    result = subprocess.run(
        ["bash", str(root / "scripts" / "demo"), *(f"--{name}={value}" for name, value in TINY.items())],
        env={**environment, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(root / "cache")},
        cwd=root,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result


def test_it_ends_with_an_answer_and_the_command_that_opens_the_report(demo: subprocess.CompletedProcess[str]) -> None:
    words = " ".join(demo.stdout.split())
    assert "that of baseline at" in words and "evaluation noise" in words
    assert "times the bias-like update" in words and "Algorithm 1 decided" in words and "p went from" in words
    command = shlex.split(demo.stdout.strip().splitlines()[-1])
    assert command[:3] == [sys.executable, "-m", "webbrowser"]
    assert "Compared with baseline." in Path(command[3].removeprefix("file://")).read_text()


def test_a_log_record_is_one_line_of_what_matters(demo: subprocess.CompletedProcess[str]) -> None:
    records = [line for line in demo.stdout.splitlines() if line.startswith("{'loss'")]
    assert len(records) == 2 * 4
    steered = records[4:]
    assert all("'p': " in line and "'D_w/D_b': " in line and line.endswith("}") for line in steered)
    assert any("'decision': " in line for line in steered)
    assert "pdyn/" not in demo.stdout


def test_no_warning_is_printed(demo: subprocess.CompletedProcess[str]) -> None:
    """But our own, that so short a training has hardly an interval of control."""
    warned = [line for line in demo.stderr.splitlines() if "warn" in line.lower()]
    assert [line for line in warned if "UserWarning: Algorithm 1 can move p only once" not in line] == []
