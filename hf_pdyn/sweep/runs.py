"""Runs of a script below the launcher, one process each, and what they came to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from hf_pdyn.frontend.launched import METRICS_FILE
from hf_pdyn.sweep.plan import name, optim_args, option
from hf_pdyn.sweep.rows import Configuration, Row, Rows, versions

_LINES_OF_A_FAILURE = 15


@dataclass(frozen=True)
class Script:
    """What every run runs: words of the launcher, the script or module, and the script's own words."""

    launcher: tuple[str, ...]
    target: tuple[str, ...]
    arguments: tuple[str, ...]

    def described(self) -> dict[str, Any]:
        """The part of a run's configuration that all of a sweep's share."""
        return {"script": " ".join(self.target), "arguments": list(self.arguments), "plugin": list(self.launcher)}

    def command(self, configuration: Configuration, directory: Path) -> list[str]:
        """The words of one run; of an option that is given twice argparse takes the last."""
        given = option(self.arguments, "--optim_args")
        return [
            *(sys.executable, "-m", "hf_pdyn", *self.launcher, *self.target, *self.arguments),
            *("--optim", "padam", "--optim_args", optim_args(given, configuration)),
            *("--learning_rate", str(configuration["learning_rate"]), "--seed", str(configuration["seed"])),
            *("--output_dir", str(directory)),
        ]


class FailedRunError(Exception):
    """A run that ended with an error, or without the metric."""


def run_all(
    configurations: Sequence[Configuration], script: Script, rows: Rows, metric: str, jobs: int, title: str
) -> list[Row]:
    """The rows of all configurations, in their order; those without the metric are run, so many at a time.

    FailedRunError for the first run that fails: no other begins then, and those that are under way are waited for.
    """
    whole = [configuration | script.described() for configuration in configurations]
    pairs = zip(configurations, whole, strict=True)
    missing = [(short, full) for short, full in pairs if metric not in (rows.of(full) or {}).get("result", {})]
    writing, failed = threading.Lock(), threading.Event()

    def one(short: Configuration, full: Configuration) -> None:
        if failed.is_set():
            return
        begun = time.perf_counter()
        try:
            result = _run(script, short, rows.path.parent / name(short), metric)
        except BaseException:
            failed.set()
            raise
        with writing:
            rows.append(full, result, time.perf_counter() - begun, versions=versions())
            progress.advance(task)

    with Progress(console=Console(stderr=True), disable=not missing) as progress, ThreadPoolExecutor(jobs) as pool:
        task = progress.add_task(title, total=len(missing))
        for done in [pool.submit(one, short, full) for short, full in missing]:
            done.result()
    return [row for full in whole if (row := rows.of(full)) is not None]


def _run(script: Script, configuration: Configuration, directory: Path, metric: str) -> dict[str, Any]:
    """The last metrics, null where not finite, and where the run is; its output is in `sweep.log` there."""
    directory.mkdir(parents=True, exist_ok=True)
    metrics, log = directory / "sweep-metrics.json", directory / "sweep.log"
    metrics.unlink(missing_ok=True)
    with log.open("w", encoding="utf-8") as output:
        done = subprocess.run(
            script.command(configuration, directory),
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=os.environ | {METRICS_FILE: str(metrics)},
            check=False,
        )
    if done.returncode != 0:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LINES_OF_A_FAILURE:])
        raise FailedRunError(f"The run {directory.name} ended with status {done.returncode}; {log} ends with:\n{tail}")
    found = json.loads(metrics.read_text(encoding="utf-8")) if metrics.exists() else {}
    if metric not in found:
        raise FailedRunError(
            f"The run {directory.name} logged no {metric!r}, only {', '.join(sorted(found)[:20]) or 'nothing'}. Name "
            "one of these with --metric; for eval_loss the script must evaluate (--eval_strategy epoch)."
        )
    return {**found, "directory": directory.name}
