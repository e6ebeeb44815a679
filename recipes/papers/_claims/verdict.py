"""`verdict.json`: what a paper claims, what was measured, and whether the one bears the other out."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_pdyn.common.atomic import replacing
from hf_pdyn.common.json_values import finite_or_none

FILE = "verdict.json"


@dataclass(frozen=True)
class Part:
    """What else the same runs can tell."""

    verdict: str
    measured: str


@dataclass(frozen=True)
class Verdict:
    """One claim.

    rule: how `verdict` follows from the numbers, fixed before they were there. measured: a sentence for the table.
    parts: by name. figures: all numbers behind it, with spreads. reason: why it came out this way, as far as known.
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
    parts: dict[str, Part] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)

    def write(self, directory: Path) -> None:
        """Write it whole, and print it."""
        with replacing(directory / FILE) as partial:
            content = finite_or_none(dataclasses.asdict(self))
            partial.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")
        print(f"{self.claim}\n  paper:    {self.paper}\n  measured: {self.measured}\n  verdict:  {self.verdict}")
        for name, part in self.parts.items():
            print(f"  {name}: {part.verdict} ({part.measured})")
        if self.reason:
            print(f"  reason:   {self.reason}")
        print(f"  written to {directory}")


def read(directory: Path) -> Verdict:
    """The verdict of a claim's directory."""
    content = json.loads((directory / FILE).read_text("utf-8"))
    return Verdict(**content | {"parts": {name: Part(**part) for name, part in content["parts"].items()}})
