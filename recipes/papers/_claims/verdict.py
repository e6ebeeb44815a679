"""`verdict.json`: what a paper claims, what was measured, and whether the one bears the other out."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_pdyn.files import replacing

FILE = "verdict.json"


@dataclass(frozen=True)
class Verdict:
    """One claim.

    rule: how `verdict` follows from the numbers, fixed before they were there. measured: a sentence for the table.
    parts: verdicts on what else the same runs can tell, by name. figures: all numbers behind it, with spreads.
    reason: why it came out this way, as far as known.
    """

    number: int
    claim: str
    paper: str
    rule: str
    measured: str
    verdict: str
    seeds: int
    size: str
    reason: str = ""
    parts: dict[str, str] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)

    def write(self, directory: Path) -> None:
        """Write it whole, and print it."""
        with replacing(directory / FILE) as partial:
            partial.write_text(json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n", "utf-8")
        print(f"{self.claim}\n  paper:    {self.paper}\n  measured: {self.measured}\n  verdict:  {self.verdict}")
        for name, found in self.parts.items():
            print(f"  {name}: {found}")
        if self.reason:
            print(f"  reason:   {self.reason}")
        print(f"  written to {directory}")


def read(directory: Path) -> Verdict:
    """The verdict of a claim's directory."""
    return Verdict(**json.loads((directory / FILE).read_text("utf-8")))
