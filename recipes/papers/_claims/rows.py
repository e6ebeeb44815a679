"""`rows.jsonl`: one line for every finished run, appended whole, found again by the run's configuration."""

import json
import os
import platform
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from _common.entry_point import RecipeError
from hf_pdyn.common.atomic import replacing
from hf_pdyn.common.environment import installed_versions
from hf_pdyn.common.json_values import finite_or_none

from .history import code_commit
from .processes import world_size

Configuration = dict[str, Any]
"""All that decides a run, `seed` among it; plain data."""

Result = dict[str, Any]
"""What came out of a run; plain data."""

Row = dict[str, Any]
"""`configuration`, `result`, `time` (UTC, of its start), `seconds`, `commit` (of the code), `versions`, `hardware`.

The oldest rows have no `time` and `commit` but `recorded_in`: the commit that brought the row into the repository, and
the time of that, which is later than the run's.
"""


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

    def add(self, configuration: Configuration, result: Result, seconds: float, device: str) -> Row:
        """Append a row; once this returns it is on the disk."""
        row = {
            "configuration": configuration,
            "result": finite_or_none(result),
            "time": (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="seconds"),
            "seconds": round(seconds, 2),
            "commit": code_commit(),
            "versions": versions(),
            "hardware": hardware(device),
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
        """Within it, no other process adds rows to the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = self.path.with_name(f".{self.path.name}.lock")
        try:
            with FileLock(lock, timeout=0):
                self._read(mend=True)
                yield
        except Timeout as error:
            raise RecipeError(
                f"--output_dir must not be in use by another run, got {str(self.path.parent)!r}, whose rows one is"
                " adding to; wait for it, or give another directory"
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
                    raise RecipeError(
                        f"{self.path} must hold a row of JSON a line, got {line[:60]!r} in line {number}; delete that"
                        " line, and its run is done again"
                    ) from error
                if mend:
                    with replacing(self.path) as partial:
                        partial.write_text("".join(lines[:-1]), encoding="utf-8")


class SharedRows:
    """The rows of configurations that lie in several folders, where other claims find them too."""

    def __init__(
        self, directory: Path, folder_of: Callable[[Configuration], str], configurations: Iterable[Configuration]
    ) -> None:
        self.path = directory
        self._folder_of = folder_of
        folders = sorted({folder_of(configuration) for configuration in configurations})
        self._rows = {folder: Rows(directory / folder / "rows.jsonl") for folder in folders}

    def of(self, configuration: Configuration) -> Row | None:
        """As `Rows.of`."""
        return self._rows[self._folder_of(configuration)].of(configuration)

    def add(self, configuration: Configuration, result: Result, seconds: float, device: str) -> Row:
        """As `Rows.add`."""
        return self._rows[self._folder_of(configuration)].add(configuration, result, seconds, device)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """As `Rows.locked`, of all files."""
        with ExitStack() as stack:
            for rows in self._rows.values():
                stack.enter_context(rows.locked())
            yield


def chosen(rows: Iterable[Row], **where: Any) -> list[Row]:
    """Those whose configuration has these values, by seed."""
    found = [row for row in rows if where.items() <= row["configuration"].items()]
    return sorted(found, key=lambda row: row["configuration"]["seed"])


def time_of(row: Row) -> datetime | None:
    """When it was run, or recorded where that is not known; None where neither is."""
    time = row.get("time") or row.get("recorded_in", {}).get("time")
    return None if time is None else datetime.fromisoformat(time)


def versions() -> dict[str, str]:
    """Of what a result may depend on."""
    names = ("hf-pdyn", "torch", "transformers", "accelerate", "peft", "datasets", "numpy")
    return {"python": platform.python_version(), **installed_versions(names)}


def hardware(device: str) -> str:
    """In words."""
    cores = f"{device}, {platform.machine()}, {os.cpu_count()} cores"
    name = torch.cuda.get_device_name() if device == "cuda" else cores
    return name if world_size() == 1 else f"{name}, {world_size()} processes"


def _key(configuration: Configuration) -> str:
    return json.dumps(configuration, sort_keys=True)
