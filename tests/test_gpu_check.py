"""scripts/gpu_check where there is no GPU, and the report it writes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.gpu import report

ROOT = Path(__file__).parents[1]

JUNIT = """<?xml version="1.0" encoding="utf-8"?>
<testsuites><testsuite name="pytest" errors="1" failures="1" skipped="2" tests="5">
<testcase classname="tests.gpu.test_a" name="test_passes[p=0.5]" time="0.250">
<properties><property name="difference" value="statistics 1e-06"/></properties></testcase>
<testcase classname="tests.gpu.test_a" name="test_fails" time="1.5">
<failure message="assert 1 == 2">...</failure></testcase>
<testcase classname="tests.gpu.test_a" name="test_errs" time="0.1"><error message="no NCCL">...</error></testcase>
<testcase classname="tests.gpu.test_a" name="test_skips" time="0"><skipped type="pytest.skip" message="no"/></testcase>
<testcase classname="tests.gpu.test_a" name="test_xfails" time="0">
<skipped type="pytest.xfail" message="known"/></testcase>
</testsuite></testsuites>
"""
ONLY_SKIPPED = (
    '<testsuites><testsuite><testcase classname="a" name="b" time="0"><skipped/></testcase></testsuite></testsuites>'
)


def test_a_report_has_outcomes_durations_and_versions(tmp_path: Path) -> None:
    junit, out = tmp_path / "junit.xml", tmp_path / "benchmarks" / "gpu_check.json"
    junit.write_text(JUNIT)
    report.write(junit, out)
    written = json.loads(out.read_text())
    assert list(out.parent.iterdir()) == [out]
    assert written["tests"][0] == {
        "name": "tests.gpu.test_a::test_passes[p=0.5]",
        "outcome": "passed",
        "seconds": 0.25,
        "properties": {"difference": "statistics 1e-06"},
    }
    assert [test["outcome"] for test in written["tests"]] == ["passed", "failed", "error", "skipped", "xfailed"]
    assert written["tests"][1]["message"] == "assert 1 == 2"
    assert written["outcomes"] == {"error": 1, "failed": 1, "passed": 1, "skipped": 1, "xfailed": 1}
    assert written["torch"] == torch.__version__
    assert written["date"].endswith("+00:00")
    assert {"gpu", "driver", "cuda", "nccl", "transformers", "accelerate", "peft", "commit"} <= written.keys()


@pytest.mark.parametrize("junit", [ONLY_SKIPPED, "<testsuites><testsuite/></testsuites>"])
def test_nothing_is_written_if_no_test_ran(tmp_path: Path, junit: str) -> None:
    (tmp_path / "junit.xml").write_text(junit)
    with pytest.raises(ValueError, match="At least one GPU-marked test must have run"):
        report.write(tmp_path / "junit.xml", tmp_path / "gpu_check.json")
    assert not (tmp_path / "gpu_check.json").exists()


def test_an_earlier_report_survives_a_failed_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "junit.xml").write_text(JUNIT)
    out = tmp_path / "gpu_check.json"
    out.write_text("earlier")
    monkeypatch.setattr(report, "machine", lambda: {"gpu": object()})
    with pytest.raises(TypeError):
        report.write(tmp_path / "junit.xml", out)
    assert out.read_text() == "earlier"


def test_the_commit_may_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMMIT", "abc")
    assert report.commit() == "abc"


def test_without_a_device_the_script_says_so_and_writes_nothing() -> None:
    results = ROOT / "benchmarks" / "gpu_check.json"
    before = results.read_bytes() if results.exists() else None
    # -1: also where there is a device, torch sees none.
    environment = os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "-1"}
    command = ["bash", str(ROOT / "scripts" / "gpu_check")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert "needs a CUDA device" in result.stderr and result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert (results.read_bytes() if results.exists() else None) == before
