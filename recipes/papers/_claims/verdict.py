"""`verdict.json`: what a paper claims, what was measured, and whether the one bears the other out."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_pdyn.common.atomic import replacing
from hf_pdyn.common.json_values import finite_or_none
from hf_pdyn.sweep.outcome import Identity, Outcome

from .history import Standing

FILE = "verdict.json"


@dataclass(frozen=True)
class Part:
    """What else the same runs can tell."""

    verdict: Outcome | Identity
    measured: str


@dataclass(frozen=True)
class Verdict:
    """One claim.

    measured: a sentence for the table. reason: why it came out this way, as far as known. parts: by name. figures: all
    numbers behind it, with spreads. The rest says how it was judged, and is filled in by the claim: by which rule; in
    which commit the rule became what it is, and whether that was before the rows; size, seeds, and options of the runs.
    """

    number: int
    claim: str
    paper: str
    measured: str
    verdict: Outcome | Identity
    reason: str = ""
    parts: dict[str, Part] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    rule: str = ""
    rule_commit: str | None = None
    standing: Standing = Standing.UNDATED
    size: str = ""
    seeds: int = 0
    options: dict[str, Any] = field(default_factory=dict)

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
        print(f"  judged:   {self.standing}{f', {self.rule_commit}' if self.rule_commit else ''}")
        print(f"  written to {directory}")


def read(directory: Path) -> Verdict:
    """The verdict of a claim's directory."""
    content = json.loads((directory / FILE).read_text("utf-8"))
    parts = {name: Part(_read(part["verdict"]), part["measured"]) for name, part in content["parts"].items()}
    judged = {"verdict": _read(content["verdict"]), "parts": parts, "standing": Standing(content["standing"])}
    return Verdict(**content | judged)


def _read(verdict: str | dict[str, float]) -> Outcome | Identity:
    return Outcome(verdict) if isinstance(verdict, str) else Identity(**verdict)
