"""Writes what a reading costs under ZeRO-3 into a document.

python -m tests.distributed.reading_table docs/distributed.md
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.distributed.launching import launch
from tests.distributed.matrix import zero

BEGIN, END = "<!-- reading: begin -->", "<!-- reading: end -->"
GPT2 = {"n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50_257}
CASES: dict[str, dict[str, Any]] = {
    "a GPT-2 of 2 layers": {"size": {}, "max_steps": 12, **zero(3)},
    "GPT-2": {"size": GPT2, "max_steps": 6, **zero(3)},
}


def measure(names: Sequence[str] = tuple(CASES)) -> list[dict[str, Any]]:
    """What each of two processes saw, by case."""
    with tempfile.TemporaryDirectory() as folder:
        return launch(2, "reading_worker", Path(folder, "out"), {name: CASES[name] for name in names})


def render(ranks: Sequence[Mapping[str, Any]]) -> str:
    """A row for each case; of times, the slower process's."""
    lines = [
        "| training | parameters | all-reduces a reading | bytes | ms a reading | ms a step |",
        "|---|---|---|---|---|---|",
    ]
    for name in ranks[0]:
        of = [rank[name] for rank in ranks]
        counts = sorted({count for one in of for count in one["all_reduces"]})
        cells = (
            f"{of[0]['parameters']:,}",
            " to ".join(map(str, counts)),
            f"{max(of[0]['bytes']):,}",
            f"{max(one['reading'] for one in of):.2f}",
            f"{max(one['step'] for one in of):,.0f}",
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    versions = ", ".join(f"{library} {version(library)}" for library in ("torch", "deepspeed"))
    return "\n".join([*lines, "", f"Measured under ZeRO-3 with two processes on one CPU, over gloo, with {versions}."])


def main() -> None:
    document = Path(sys.argv[1])
    before, rest = document.read_text().split(BEGIN)
    document.write_text(f"{before}{BEGIN}\n{render(measure())}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
