import json
import math
import multiprocessing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from papers._claims.history import code_commit
from papers._claims.rows import Rows, SharedRows, hardware, time_of, versions

ONE, OTHER = {"p": 0.1, "seed": 0}, {"p": 0.2, "seed": 0}


def filled(path: Path) -> Rows:
    rows = Rows(path)
    rows.add(ONE, {"x": 1.5}, 0.25, "cpu")
    rows.add(OTHER, {"x": 2.5}, 0.5, "cpu")
    return rows


def test_rows_are_found_again_by_their_configuration(tmp_path: Path) -> None:
    filled(tmp_path / "rows.jsonl")
    again = Rows(tmp_path / "rows.jsonl")
    assert len(again) == 2
    assert again.of({"seed": 0, "p": 0.2})["result"] == {"x": 2.5}  # in any order of its keys
    assert again.of({"p": 0.2, "seed": 1}) is None
    row = again.of(ONE)
    assert row["versions"] == versions() and row["hardware"] == hardware("cpu") and row["seconds"] == 0.25
    assert {"torch", "transformers", "hf-pdyn", "python"} <= row["versions"].keys()
    assert row["commit"] == code_commit()


def test_a_row_has_the_time_at_which_its_run_began(tmp_path: Path) -> None:
    """To the second, as it is told."""
    row = Rows(tmp_path / "rows.jsonl").add(ONE, {}, 3600.0, "cpu")
    since = datetime.now(UTC) - time_of(row)
    assert timedelta(hours=1) <= since < timedelta(hours=1, minutes=1)
    assert row["time"].endswith("+00:00")


def test_the_oldest_rows_have_the_time_at_which_they_were_recorded() -> None:
    row = {"recorded_in": {"commit": "772eaec", "time": "2026-11-25T10:54:01+00:00"}}
    assert time_of(row) == datetime(2026, 11, 25, 10, 54, 1, tzinfo=UTC)
    assert time_of({}) is None


def test_a_number_that_is_not_finite_is_missing(tmp_path: Path) -> None:
    """As JSON has neither NaN nor infinity; the row that was just added reads as the one on the disk."""
    rows = Rows(tmp_path / "rows.jsonl")
    added = rows.add(ONE, {"x": [math.nan, 1.0], "y": {"z": math.inf}}, 0.25, "cpu")
    assert added["result"] == {"x": [None, 1.0], "y": {"z": None}} == Rows(rows.path).of(ONE)["result"]
    json.loads(rows.path.read_text(), parse_constant=pytest.fail)


def test_a_row_is_on_the_disk_at_once(tmp_path: Path) -> None:
    filled(tmp_path / "rows.jsonl")
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line)["configuration"] for line in lines] == [ONE, OTHER]


@pytest.mark.parametrize("kept", range(1, 40, 7))
def test_an_unfinished_last_line_is_dropped(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "rows.jsonl"
    filled(path)
    first, second = path.read_text().splitlines(keepends=True)
    path.write_text(first + second[:kept])
    rows = Rows(path)
    assert rows.of(ONE) is not None and rows.of(OTHER) is None
    assert path.read_text() == first + second[:kept]  # somebody may be writing it
    with rows.locked():
        assert rows.of(ONE) is not None and rows.of(OTHER) is None
        assert path.read_text() == first
        rows.add(OTHER, {"x": 3.5}, 0.5, "cpu")
    assert Rows(path).of(OTHER)["result"] == {"x": 3.5}


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    filled(path)
    first, second = path.read_text().splitlines(keepends=True)
    path.write_text("nonsense\n" + second)
    with pytest.raises(ValueError, match=r"'nonsense\\n' in line 1; delete that line"):
        Rows(path)
    path.write_text(first + '{"seconds": 1}\n')
    with pytest.raises(ValueError, match="in line 2"):
        Rows(path)


def _hold(path: str, held: "multiprocessing.synchronize.Event", done: "multiprocessing.synchronize.Event") -> None:
    with Rows(Path(path)).locked():
        held.set()
        done.wait(60)


def test_one_process_at_a_time_adds_rows(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    held, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(str(tmp_path / "rows.jsonl"), held, done))
    other.start()
    try:
        assert held.wait(60)
        with (
            pytest.raises(ValueError, match="must not be in use by another run"),
            Rows(tmp_path / "rows.jsonl").locked(),
        ):
            pass
    finally:
        done.set()
        other.join()
    with Rows(tmp_path / "rows.jsonl").locked():
        pass


def shared(folder: Path) -> SharedRows:
    return SharedRows(folder, lambda configuration: f"p={configuration['p']}", [ONE, OTHER])


def test_rows_of_several_folders(tmp_path: Path) -> None:
    rows = shared(tmp_path)
    with rows.locked():
        rows.add(ONE, {"x": 1.5}, 0.25, "cpu")
        assert rows.of(ONE)["result"] == {"x": 1.5} and rows.of(OTHER) is None
        with (
            pytest.raises(ValueError, match="in use by another run"),
            Rows(tmp_path / "p=0.2" / "rows.jsonl").locked(),
        ):
            pass
    shared(tmp_path).add(OTHER, {"x": 2.5}, 0.25, "cpu")
    assert [shared(tmp_path).of(one)["result"]["x"] for one in (ONE, OTHER)] == [1.5, 2.5]
    assert len(Rows(tmp_path / "p=0.1" / "rows.jsonl")) == len(Rows(tmp_path / "p=0.2" / "rows.jsonl")) == 1
