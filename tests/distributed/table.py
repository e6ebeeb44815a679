"""Writes the launch matrix into a document: `python -m tests.distributed.table docs/distributed.md`."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from tests.distributed.matrix import CASES, LAUNCHES, Difference, difference, run

BEGIN, END = "<!-- launch matrix: begin -->", "<!-- launch matrix: end -->"
COLUMNS = [name for name in LAUNCHES if name != "plain"]
LIBRARIES = ("torch", "transformers", "accelerate", "peft", "deepspeed")


def measure() -> dict[tuple[str, str], Difference]:
    """Every cell, by training and launch; takes some two minutes."""
    with tempfile.TemporaryDirectory() as folder:
        plain = run("plain", Path(folder, "plain"))[0]
        ranks = {launch: run(launch, Path(folder, launch)) for launch in COLUMNS}
    return {
        (case, launch): difference([rank[case] for rank in ranks[launch]], plain[case])
        for case in CASES
        for launch in COLUMNS
    }


def render(cells: Mapping[tuple[str, str], Difference]) -> str:
    """The table: largest relative difference of statistics / of weights, and whether p was the same."""
    lines = [f"| training | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for case in CASES:
        row = [cells[case, launch] for launch in COLUMNS]
        shown = [f"{cell.statistics:.0e} / {cell.weights:.0e}{'' if cell.same_p else ', OTHER P'}" for cell in row]
        lines.append(f"| {case} | {' | '.join(shown)} |")
    versions = ", ".join(f"{library} {version(library)}" for library in LIBRARIES)
    return "\n".join([*lines, "", f"Measured on CPUs over gloo with {versions}."])


def insert(document: str, table: str) -> str:
    """`document` with `table` between its markers; ValueError where it has none."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"The document must have the lines {BEGIN} and {END}, between which the table goes.")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def main() -> None:
    path = Path(sys.argv[1])
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(insert(path.read_text(), render(measure())))
    os.replace(unfinished, path)


if __name__ == "__main__":
    main()
