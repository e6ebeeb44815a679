"""Writes the table of patches into the documentation: `python -m tests.integrations.patches_table`."""

from __future__ import annotations

from pathlib import Path

from hf_pdyn.integrations.patches import PATCHES
from hf_pdyn.integrations.patching import Patch

DOCUMENT = Path(__file__).parents[2] / "docs" / "patches.md"
BEGIN, END = "<!-- patches: begin -->", "<!-- patches: end -->"


def render() -> str:
    """One row for each patch."""
    return "\n".join(
        ["| target | severity | tried with | changed by | without it |", "|---|---|---|---|---|", *map(row, PATCHES)]
    )


def row(patch: Patch) -> str:
    module, _, name = patch.target.partition(":")
    tried = f"{patch.library} {patch.tried}{f', there since {patch.since}' if patch.since else ''}"
    severity = "required" if patch.required else "optional"
    return f"| `{name}` of `{module}` | {severity} | {tried} | {patch.when} | {patch.lost} |"


if __name__ == "__main__":
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    DOCUMENT.write_text(f"{before}{BEGIN}\n{render()}\n{END}{rest.partition(END)[2]}")
