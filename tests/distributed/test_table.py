"""The table in the documentation is of this matrix."""

from pathlib import Path

import pytest

from tests.distributed.matrix import CASES, Difference
from tests.distributed.table import BEGIN, COLUMNS, END, insert, render

DOCUMENT = Path(__file__).parents[2] / "docs" / "distributed.md"


def rows(table: str) -> dict[str, list[str]]:
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return {cells[0]: cells[1:] for cells in lines}


def test_it_has_every_cell_and_none_that_disagrees() -> None:
    table = rows(DOCUMENT.read_text().partition(BEGIN)[2].partition(END)[0])
    assert table.pop("training") == COLUMNS
    assert list(table) == list(CASES)
    for cells in table.values():
        assert all(float(number) <= 1e-5 for cell in cells for number in cell.split(" / "))


def test_writing_it() -> None:
    cells = {
        (case, launch): Difference({"pdyn/D_w": 1e-7}, 2e-6, launch != "DDP") for case in CASES for launch in COLUMNS
    }
    document = insert(f"before\n{BEGIN}\nold\n{END}\nafter", render(cells))
    assert document.startswith(f"before\n{BEGIN}\n| training |")
    assert document.endswith(f"{END}\nafter")
    assert "old" not in document
    assert rows(document)["full, padam p=.5"] == ["1e-07 / 2e-06, OTHER P", *["1e-07 / 2e-06"] * (len(COLUMNS) - 1)]
    with pytest.raises(ValueError, match="must have the lines"):
        insert("no markers", "")
