"""Writes what the GPU-marked tests found: `python -m tests.gpu.report JUNIT_XML JSON`, from pytest's --junitxml.

With the date, hardware and versions of this machine; nothing is written if no test ran.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

from hf_pdyn.common.environment import installed_versions

PACKAGES = ("torch", "transformers", "accelerate", "peft", "pytest")


def tests_of(junit: Path) -> list[dict[str, Any]]:
    """Each test's name, outcome, seconds, and properties (as the differences it found) or message where it has any."""
    return [_test(case) for case in ElementTree.parse(junit).iter("testcase")]


def _test(case: ElementTree.Element) -> dict[str, Any]:
    test: dict[str, Any] = {
        "name": f"{case.get('classname')}::{case.get('name')}",
        "outcome": "passed",
        "seconds": float(case.get("time", "nan")),
    }
    for name, outcome in (("skipped", "skipped"), ("failure", "failed"), ("error", "error")):
        found = case.find(name)
        if found is not None:
            xfailed = found.get("type") == "pytest.xfail"
            test |= {"outcome": "xfailed" if xfailed else outcome, "message": found.get("message", "")[:500]}
    properties = {item.get("name"): item.get("value") for item in case.iter("property")}
    return test | ({"properties": properties} if properties else {})


def machine() -> dict[str, Any]:
    """Hardware and versions; null for what this machine cannot say."""
    cuda = torch.cuda.is_available()
    return {
        "gpu": torch.cuda.get_device_name(0) if cuda else None,
        "driver": _first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cuda": torch.version.cuda,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if cuda else None,
        "python": platform.python_version(),
        **dict.fromkeys(PACKAGES),
        **installed_versions(PACKAGES),
    }


def commit() -> str | None:
    """The commit, with "-dirty" where tracked files differ; COMMIT names it where git does not know."""
    return os.environ.get("COMMIT") or _first_line("git", "describe", "--always", "--dirty", "--abbrev=40")


def write(junit: Path, out: Path) -> dict[str, Any]:
    """Write the report to `out`, whole or not at all; ValueError if no test ran."""
    tests = tests_of(junit)
    counts = Counter(test["outcome"] for test in tests)
    if not counts - Counter(skipped=counts["skipped"]):
        raise ValueError(
            f"At least one GPU-marked test must have run, got {len(tests)}, all of them skipped. Look at pytest's "
            "reasons above; nothing is written."
        )
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        **machine(),
        "outcomes": dict(sorted(counts.items())),
        "tests": tests,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f"{out.name}.{os.getpid()}.tmp")
    unfinished.write_text(json.dumps(report, indent=1) + "\n")
    unfinished.replace(out)
    return report


def _first_line(*command: str) -> str | None:
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip().partition("\n")[0] or None


if __name__ == "__main__":
    try:
        written = write(Path(sys.argv[1]), Path(sys.argv[2]))
    except ValueError as error:
        sys.exit(str(error))
    print(f"{sys.argv[2]}: {written['outcomes']} on {written['gpu']}")  # noqa: T201
