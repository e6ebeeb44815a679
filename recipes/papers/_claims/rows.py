"""The rows of claims: those of `hf_pdyn.sweep`, with the commit of the code and the hardware."""

import os
import platform
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from hf_pdyn.sweep import rows as plain
from hf_pdyn.sweep.rows import Configuration, Result, Row, versions

from .history import code_commit
from .processes import world_size

__all__ = ["Configuration", "Result", "Row", "Rows", "SharedRows", "chosen", "hardware", "time_of", "versions"]


class Rows(plain.Rows):
    """The rows of one file, with `commit` (of the code), `versions` and `hardware`.

    The oldest rows have no `time` and `commit` but `recorded_in`: the commit that brought the row into the repository,
    and the time of that, which is later than the run's.
    """

    def add(self, configuration: Configuration, result: Result, seconds: float, device: str) -> Row:
        """Append a row; once this returns it is on the disk."""
        surroundings = {"commit": code_commit(), "versions": versions(), "hardware": hardware(device)}
        return self.append(configuration, result, seconds, **surroundings)


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


def hardware(device: str) -> str:
    """In words."""
    cores = f"{device}, {platform.machine()}, {os.cpu_count()} cores"
    name = torch.cuda.get_device_name() if device == "cuda" else cores
    return name if world_size() == 1 else f"{name}, {world_size()} processes"
