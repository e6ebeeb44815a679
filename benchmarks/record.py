"""Where and with what a benchmark was run, and the file that keeps what it found."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from datetime import date
from pathlib import Path
from typing import Any

import torch

from hf_pdyn.common.atomic import replacing
from hf_pdyn.common.environment import installed_versions

FOLDER = Path(__file__).parent
PACKAGES = (
    *("torch", "triton", "transformers", "accelerate", "peft"),
    *("deepspeed", "pytorch_optimizer", "torchao", "bitsandbytes"),
)


def hardware(device: torch.device) -> str:
    """The processor's name, and how many of its cores are used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    name = found.group(1).strip() if found else platform.machine()
    vectors = torch.backends.cpu.get_cpu_capability()
    return f"{name}, {torch.get_num_threads()} threads, {vectors}"


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), **installed_versions(PACKAGES)}


def commit() -> str | None:
    """The commit that runs, with "-dirty" where it is not what runs; COMMIT names it where git does not know."""
    if "COMMIT" in os.environ:
        return os.environ["COMMIT"]
    but_records = ("--", ":/", ":(exclude,top)benchmarks/*.json")
    try:
        return _git("rev-parse", "--short", "HEAD") + ("-dirty" if _git("diff", "HEAD", *but_records) else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=FOLDER, capture_output=True, text=True, check=True).stdout.strip()


_KEY = ("shapes", "dtype", "ours", "against")


def write(what: str, device: torch.device, found: dict[str, Any], target: str | None, *, add: bool = False) -> Path:
    """Write a record and return its path: benchmarks/<what>-<hardware>-<date>.json unless `target` names another.

    add: to the record of steps that is there; of what both have, the new rows and numbers stay.
    """
    where = hardware(device)
    surroundings = {"hardware": where, "versions": versions(), "date": date.today().isoformat(), "commit": commit()}
    record = {"what": what, **surroundings, **found}
    slug = re.sub(r"[^a-z0-9]+", "-", where.lower()).strip("-")
    path = Path(target) if target else FOLDER / f"{what}-{slug}-{record['date']}.json"
    if add and path.exists():
        before = json.loads(path.read_text())
        rows = {tuple(row[name] for name in _KEY): row for row in (*before["rows"], *record["rows"])}
        record = {**before, **record, "rows": list(rows.values())}  # each where it first stood
    with replacing(path) as partial:
        partial.write_text(json.dumps(record, indent=1) + "\n")
    return path
