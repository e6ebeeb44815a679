"""`rows.jsonl`: one line for every finished run, appended whole, found again by the run's configuration."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hf_pdyn.common.atomic import replacing
from hf_pdyn.common.environment import installed_versions
from hf_pdyn.common.json_values import finite_or_none

Configuration = dict[str, Any]
"""All that decides a run, `seed` among it; plain data."""

Result = dict[str, Any]
"""What came out of a run; plain data."""

Row = dict[str, Any]
"""`configuration`, `result`, `time` (UTC, of its start), `seconds`, and what describes the run's surroundings."""

LIBRARIES = ("hf-pdyn", "torch", "transformers", "accelerate", "peft", "datasets", "numpy")


class Rows:
    """The rows of one file. A line that a killed process left unfinished is no row, and its run is done again.

    It is dropped from the file under the lock only: without, another process may be writing it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._by_key: dict[str, Row] = {}
        self._read()

    def __len__(self) -> int:
        return len(self._by_key)

    def of(self, configuration: Configuration) -> Row | None:
        """The row of a configuration, None where it has not been run."""
        return self._by_key.get(_key(configuration))

    def append(self, configuration: Configuration, result: Result, seconds: float, **surroundings: Any) -> Row:
        """Append a row; once this returns it is on the disk."""
        row = {
            "configuration": configuration,
            "result": finite_or_none(result),
            "time": (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="seconds"),
            "seconds": round(seconds, 2),
            **surroundings,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False, separators=(",", ":")) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._by_key[_key(configuration)] = row
        return row

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Within it, no other process adds rows to the file; ValueError where one is adding them."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = self.path.with_name(f".{self.path.name}.lock")
        try:
            with FileLock(lock, timeout=0):
                self._read(mend=True)
                yield
        except Timeout as error:
            raise ValueError(
                f"--output_dir must not be in use by another run, got {str(self.path.parent)!r}, whose rows one is "
                "adding to; wait for it, or give another directory"
            ) from error

    def _read(self, mend: bool = False) -> None:
        self._by_key = {}
        if not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                self._by_key[_key(row["configuration"])] = row
            except (ValueError, KeyError, TypeError) as error:
                if number < len(lines) or line.endswith("\n"):
                    raise ValueError(
                        f"{self.path} must hold a row of JSON a line, got {line[:60]!r} in line {number}; delete that "
                        "line, and its run is done again"
                    ) from error
                if mend:
                    with replacing(self.path) as partial:
                        partial.write_text("".join(lines[:-1]), encoding="utf-8")


def versions() -> dict[str, str]:
    """The versions that a result may depend on."""
    return {"python": platform.python_version(), **installed_versions(LIBRARIES)}


def _key(configuration: Configuration) -> str:
    return json.dumps(configuration, sort_keys=True)
