"""Print the verdicts of papers as tables, and with --into put each into a document, between its marks.

python recipes/claims_table.py
python recipes/claims_table.py allocation --into paper_index.md
"""

import argparse
from pathlib import Path

from _common.entry_point import RecipeError, run_recipe
from hf_pdyn.common.atomic import replacing
from papers import PAPERS, paper
from papers._claims import verdict
from papers._claims.history import Standing
from papers._claims.verdict import Verdict

BEGIN, END = "<!-- {name}: begin -->\n", "<!-- {name}: end -->\n"
FOLDERS = {"": "results", "_larger": "larger"}
"""Folders of a paper's package, by what stands after its name in marks: quick runs, and any larger ones."""
HEADER = "| claim | paper | measured | verdict |\n|---|---|---|---|\n"


def verdicts(results: Path) -> list[Verdict]:
    """All of a directory, by number."""
    found = [verdict.read(path.parent) for path in results.glob(f"*/{verdict.FILE}")]
    return sorted(found, key=lambda one: one.number)


def table(found: list[Verdict]) -> str:
    """A line each, and one for every part; empty without any."""
    lines = []
    for one in found:
        note = "" if one.standing is Standing.BEFORE else f"; {one.standing}"
        name = f"{one.number}. {one.claim} ({one.size}, {one.seeds} seeds)"
        lines.append(_line(name, one.paper, one.measured, f"{one.verdict}{note}"))
        lines += [
            _line(f"{one.number}. {name}", "", part.measured, str(part.verdict)) for name, part in one.parts.items()
        ]
    return HEADER + "".join(lines) if lines else ""


def _line(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def put(text: str, document: Path, name: str) -> None:
    """Between the document's two marks of that name."""
    content = document.read_text("utf-8")
    begin, end = BEGIN.format(name=name), END.format(name=name)
    before, found, rest = content.partition(begin)
    if not found or end not in rest:
        raise RecipeError(
            f"{document} must hold {begin.strip()} and, after it, {end.strip()}; put both where the table shall be"
        )
    with replacing(document) as partial:
        partial.write_text(f"{before}{begin}{text}{end}{rest.partition(end)[2]}", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("papers", nargs="*", metavar="PAPER", help=f"of {', '.join(PAPERS)} (default: all)")
    parser.add_argument(
        "--output_dir", type=Path, help="holds a folder for each paper (default: the results on record)"
    )
    parser.add_argument("--into", type=Path, help="a document with marks for the table of each paper")
    given = parser.parse_args()
    for name in given.papers or PAPERS:
        for mark, folder in FOLDERS.items():
            on_record = Path(paper(name).__path__[0], folder)
            if mark and (given.output_dir or not on_record.exists()):
                continue
            text = table(verdicts(given.output_dir / name if given.output_dir else on_record))
            if text:
                print(f"{paper(name).TITLE}\n\n{text}")
            if given.into is not None:
                put(text, given.into, name + mark)


if __name__ == "__main__":
    run_recipe(main)
