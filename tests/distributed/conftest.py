"""Launches are expensive: each is made once for all workers of pytest-xdist, and read from disk by the others."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from filelock import FileLock

from tests.distributed import matrix


@pytest.fixture(scope="session")
def launched(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Callable[[str], list[dict[str, Any]]]:
    """The reports of all ranks of the matrix's launch of that name, case by case."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent

    @cache
    def reports(launch: str) -> list[dict[str, Any]]:
        out = shared / "launches" / launch
        out.parent.mkdir(exist_ok=True)
        with FileLock(f"{out}.lock"):
            if not out.exists():
                return matrix.run(launch, out)
        return matrix.reports(launch, out)

    return reports


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One line for each cell of the matrix."""
    passed = terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
    cells = [
        value for report in passed if report.when == "call" for name, value in report.user_properties if name == "cell"
    ]
    if cells:
        terminalreporter.section("launch matrix, largest relative differences from one process")
        for cell in sorted(cells):
            terminalreporter.write_line(cell)
