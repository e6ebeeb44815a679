"""Print the verdicts under a directory as a table, and with --into put it into a document.

python recipes/claims_table.py recipes/papers/allocation/results --into paper_index.md
"""

import argparse
import sys
from pathlib import Path

from hf_pdyn.common.atomic import replacing
from papers._claims import verdict
from papers._claims.verdict import Verdict

BEGIN, END = "<!-- {name}: begin -->\n", "<!-- {name}: end -->\n"
HEADER = "| claim | paper | measured | verdict |\n|---|---|---|---|"


def verdicts(results: Path) -> list[Verdict]:
    """All of a directory, by number."""
    found = [verdict.read(path.parent) for path in results.glob(f"*/{verdict.FILE}")]
    return sorted(found, key=lambda one: one.number)


def table(found: list[Verdict]) -> str:
    """A line each, and one for every part."""
    lines = [HEADER]
    for one in found:
        lines.append(
            _line(f"{one.number}. {one.claim} ({one.size}, {one.seeds} seeds)", one.paper, one.measured, one.verdict)
        )
        lines += [_line(f"{one.number}. {name}", "", part.measured, part.verdict) for name, part in one.parts.items()]
    return "\n".join(lines)


def _line(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def put(text: str, document: Path, name: str) -> None:
    """Between the document's two marks of that name."""
    content = document.read_text("utf-8")
    begin, end = BEGIN.format(name=name), END.format(name=name)
    before, found, rest = content.partition(begin)
    if not found or end not in rest:
        sys.exit(
            f"{document} must hold {begin.strip()} and, after it, {end.strip()}; put both where the table shall be"
        )
    with replacing(document) as partial:
        partial.write_text(f"{before}{begin}{text}\n{end}{rest.partition(end)[2]}", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="what claims were given as --output_dir")
    parser.add_argument("--into", type=Path, help="a document with marks for the table of that paper")
    given = parser.parse_args()
    found = verdicts(given.results)
    if not found:
        sys.exit(f"{given.results} must hold the folders of claims with a {verdict.FILE}, got none; run scripts/papers")
    print(table(found))
    if given.into is not None:
        put(table(found), given.into, given.results.resolve().parent.name)


if __name__ == "__main__":
    main()
