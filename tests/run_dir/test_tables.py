"""Rows of telemetry in Parquet files."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_pdyn.common.atomic import replacing
from hf_pdyn.run_dir.tables import DECISIONS, LAYERS, SAMPLE_LOSSES, TABLE_KINDS, TableWriter, forget_after, read_table

RUN = "5f0c"


def rows(*steps: int) -> list[dict[str, Any]]:
    return [
        {"step": step, "epoch": step / 10, "layer": "h.0", "part": part, "name": "grad_norm", "value": 0.5 * step}
        for step in steps
        for part in ("weight", "bias_like")
    ]


def written(run_dir: Path, *flushes: tuple[int, ...]) -> TableWriter:
    writer = TableWriter(run_dir, LAYERS, RUN)
    for steps in flushes:
        writer.add(rows(*steps))
        writer.flush()
    return writer


def test_rows_come_back_by_step(tmp_path: Path) -> None:
    writer = written(tmp_path, (10, 20), (30,))
    assert len(writer) == 0 and writer.flush() is None
    table, problems = read_table(tmp_path, LAYERS)
    assert not problems
    assert table.to_pylist() == rows(10, 20, 30)
    names = [path.name for path in sorted(LAYERS.folder(tmp_path).iterdir())]
    assert names == ["step-00000020.parquet", "step-00000030.parquet"]


def test_a_folder_is_a_data_set(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    written(tmp_path, (10, 20), (30,))
    loaded = datasets.load_dataset(
        "parquet", data_dir=str(LAYERS.folder(tmp_path)), cache_dir=str(tmp_path / "cache"), split="train"
    )
    assert loaded.to_list() == rows(10, 20, 30)


def test_a_second_flush_at_a_step_adds_to_its_file(tmp_path: Path) -> None:
    written(tmp_path, (10,), (10,))
    assert len(read_table(tmp_path, LAYERS)[0]) == 4


def test_a_named_file_is_replaced(tmp_path: Path) -> None:
    writer = TableWriter(tmp_path, SAMPLE_LOSSES, RUN)
    for loss in (1.0, 2.0):
        writer.add([{"step": 5, "epoch": 1.0, "split": "test", "index": 0, "loss": loss}])
        path = writer.flush("epoch-0001")
    assert path is not None and pq.read_table(path).to_pylist() == [
        {"step": 5, "epoch": 1.0, "split": "test", "index": 0, "part": None, "loss": 2.0, "correct": None}
    ]


@pytest.mark.parametrize(("step", "left"), [(0, ()), (10, (10,)), (15, (10,)), (20, (10, 20)), (99, (10, 20, 30))])
def test_rows_that_a_run_repeats_are_dropped(tmp_path: Path, step: int, left: tuple[int, ...]) -> None:
    written(tmp_path, (10, 20), (30,))
    assert forget_after(tmp_path, {RUN: step}) == {}
    assert read_table(tmp_path, LAYERS)[0].to_pylist() == rows(*left)
    assert forget_after(tmp_path, {RUN: -1}) == {}, "a cut file still has the run's id"
    assert list(LAYERS.folder(tmp_path).iterdir()) == []


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def test_a_damaged_file_is_named_and_the_others_read(tmp_path: Path) -> None:
    written(tmp_path, (10,), (20,))
    damaged = LAYERS.folder(tmp_path) / "step-00000020.parquet"
    damage(damaged)
    table, problems = read_table(tmp_path, LAYERS)
    assert table.to_pylist() == rows(10)
    assert list(problems) == [damaged]


def test_a_file_of_other_columns_is_named(tmp_path: Path) -> None:
    written(tmp_path, (10,))
    LAYERS.folder(tmp_path).rename(DECISIONS.folder(tmp_path))
    table, problems = read_table(tmp_path, DECISIONS)
    assert len(table) == 0 and len(problems) == 1


def test_text_that_is_no_utf_8_is_named_and_the_others_read(tmp_path: Path) -> None:
    written(tmp_path, (10,))
    bad = LAYERS.folder(tmp_path) / "bad.parquet"
    table = pa.Table.from_pylist(rows(20), schema=LAYERS.schema)
    column = pa.Array.from_buffers(pa.string(), 2, pa.array([b"h\xff", b"ok"]).buffers())
    pq.write_table(table.set_column(2, "layer", column), bad)
    table, problems = read_table(tmp_path, LAYERS)
    assert table.to_pylist() == rows(10) and "UTF8" in problems[bad]


def test_rows_of_another_run_are_named_where_the_run_is_known(tmp_path: Path) -> None:
    written(tmp_path, (10,))
    other = TableWriter(tmp_path, LAYERS, "other")
    other.add(rows(20))
    path = other.flush()
    table, problems = read_table(tmp_path, LAYERS, RUN)
    assert table.to_pylist() == rows(10) and problems == {path: "another run wrote it"}


# What a new run finds in the folder of a run `RUN`, which it replaces, and must not touch.
FOREIGN: dict[str, Callable[[Path, Path], object]] = {
    "other columns": lambda path, _: pq.write_table(pa.table({"x": [1]}), path),
    "a column of another type": lambda path, _: pq.write_table(
        pa.Table.from_pylist(rows(5)).set_column(0, "step", pa.array([5.0, 5.0])), path
    ),
    "no run's id": lambda path, _: pq.write_table(pa.Table.from_pylist(rows(5), schema=LAYERS.schema), path),
    "another run's id": lambda path, _: pq.write_table(
        pa.Table.from_pylist(rows(5), schema=LAYERS.schema.with_metadata({"hf_pdyn.run": "other"})), path
    ),
    "a link": lambda path, own: path.symlink_to(own.rename(path.parents[2] / "elsewhere")),
    "a dangling link": lambda path, _: path.symlink_to("nowhere"),
    "a FIFO": lambda path, _: os.mkfifo(path),
    "a directory": lambda path, _: path.mkdir(),
    "damaged": lambda path, own: path.write_bytes(own.read_bytes()[:100]),
}


@pytest.mark.parametrize("made", FOREIGN)
def test_what_is_not_the_run_s_own_stays_and_is_named(tmp_path: Path, made: str) -> None:
    written(tmp_path, (10,), (20,))
    foreign = LAYERS.folder(tmp_path) / "a.parquet"
    FOREIGN[made](foreign, LAYERS.folder(tmp_path) / "step-00000020.parquet")
    before = os.lstat(foreign)
    elsewhere = tmp_path / "elsewhere"
    assert list(forget_after(tmp_path, {RUN: -1})) == [foreign]
    assert os.path.samestat(os.lstat(foreign), before) and list(LAYERS.folder(tmp_path).iterdir()) == [foreign]
    assert made != "a link" or len(pq.read_table(elsewhere)) == 2


@pytest.mark.parametrize("linked", ["pdyn", "pdyn/layers"])
def test_nothing_is_dropped_through_a_linked_folder(tmp_path: Path, linked: str) -> None:
    written(tmp_path / "run", (10,))
    (tmp_path / "run" / linked).rename(tmp_path / "elsewhere")
    (tmp_path / "run" / linked).symlink_to(tmp_path / "elsewhere")
    (left,) = forget_after(tmp_path / "run", {RUN: -1}).values()
    assert left.endswith(f"{linked} is a link")
    assert read_table(tmp_path / "run", LAYERS)[0].to_pylist() == rows(10)


@pytest.mark.parametrize("made", FOREIGN)
def test_a_foreign_file_of_the_same_name_is_not_replaced(tmp_path: Path, made: str) -> None:
    writer = written(tmp_path, (20,))
    path = LAYERS.folder(tmp_path) / "step-00000010.parquet"
    FOREIGN[made](path, LAYERS.folder(tmp_path) / "step-00000020.parquet")
    before = os.lstat(path)
    writer.add(rows(10))
    assert writer.flush() == path.with_name("step-00000010-2.parquet")
    assert os.path.samestat(os.lstat(path), before)


def test_what_a_killed_writer_left_is_swept_and_a_live_one_s_is_not(tmp_path: Path) -> None:
    writer = written(tmp_path, (10,))
    folder = LAYERS.folder(tmp_path)
    (folder / ".step-00000020.parquet.1").write_bytes(b"PAR1")
    (folder / ".mine.parquet").write_bytes(b"kept")
    with replacing(folder / "step-00000030.parquet") as unfinished:
        forget_after(tmp_path, {RUN: 10})
        assert {path.name for path in folder.glob(".*")} == {".mine.parquet", unfinished.name}
        unfinished.write_bytes(b"whole")
    assert (folder / "step-00000030.parquet").read_bytes() == b"whole" and len(writer) == 0


def test_a_failed_write_leaves_the_file_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = written(tmp_path, (10,))

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("hf_pdyn.common.atomic.os.replace", fail)
    writer.add(rows(10))
    with pytest.raises(OSError, match="disk full"):
        writer.flush()
    assert read_table(tmp_path, LAYERS)[0].to_pylist() == rows(10)
    assert [path.name for path in LAYERS.folder(tmp_path).iterdir()] == ["step-00000010.parquet"]
    assert len(writer) == 2  # and may be flushed again


def test_nothing_recorded_reads_as_no_rows(tmp_path: Path) -> None:
    for kind in TABLE_KINDS.values():
        table, problems = read_table(tmp_path / "nowhere", kind)
        assert table.schema.equals(kind.schema) and len(table) == 0 and not problems
