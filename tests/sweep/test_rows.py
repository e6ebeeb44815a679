"""Rows are whole, found by their configuration, and one process's at a time."""

from pathlib import Path

import pytest

from hf_pdyn.sweep.rows import Rows

RUN = {"p": 0.5, "seed": 1}


def test_a_row_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    Rows(path).append(RUN, {"loss": float("nan")}, 1.5, versions={"torch": "x"})
    row = Rows(path).of({"seed": 1, "p": 0.5})
    assert row is not None
    assert (row["result"], row["seconds"], row["versions"]) == ({"loss": None}, 1.5, {"torch": "x"})
    assert Rows(path).of({"seed": 2, "p": 0.5}) is None


def test_an_unfinished_line_is_no_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    Rows(path).append(RUN, {}, 0.0)
    with path.open("a") as file:
        file.write('{"configuration": {"p"')
    rows = Rows(path)
    assert len(rows) == 1
    with rows.locked():
        assert path.read_text().count("\n") == 1


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("nonsense\n")
    with pytest.raises(ValueError, match="nonsense.*line 1"):
        Rows(path)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "rows.jsonl")
    with rows.locked(), pytest.raises(ValueError, match="in use by another run"), Rows(rows.path).locked():
        pass
