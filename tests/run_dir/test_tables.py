"""Rows of telemetry in Parquet files."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_pdyn.run_dir.tables import DECISIONS, LAYERS, SAMPLE_LOSSES, TABLE_KINDS, TableWriter, forget_after, read_table


def rows(*steps: int) -> list[dict[str, Any]]:
    return [
        {"step": step, "epoch": step / 10, "layer": "h.0", "part": part, "name": "grad_norm", "value": 0.5 * step}
        for step in steps
        for part in ("weight", "bias_like")
    ]


def written(run_dir: Path, *flushes: tuple[int, ...]) -> TableWriter:
    writer = TableWriter(run_dir, LAYERS)
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
    writer = TableWriter(tmp_path, SAMPLE_LOSSES)
    for loss in (1.0, 2.0):
        writer.add([{"step": 5, "epoch": 1.0, "split": "test", "index": 0, "loss": loss}])
        path = writer.flush("epoch-0001")
    assert path is not None and pq.read_table(path).to_pylist() == [
        {"step": 5, "epoch": 1.0, "split": "test", "index": 0, "loss": 2.0, "correct": None}
    ]


@pytest.mark.parametrize(("step", "left"), [(0, ()), (10, (10,)), (15, (10,)), (20, (10, 20)), (99, (10, 20, 30))])
def test_a_cut_leaves_what_is_not_repeated(tmp_path: Path, step: int, left: tuple[int, ...]) -> None:
    writer = written(tmp_path, (10, 20), (30,))
    writer.add(rows(40))
    writer.cut(step)
    assert len(writer) == (2 if step >= 40 else 0)
    assert read_table(tmp_path, LAYERS)[0].to_pylist() == rows(*left)


def test_a_damaged_file_is_named_and_the_others_read(tmp_path: Path) -> None:
    written(tmp_path, (10,), (20,))
    damaged = LAYERS.folder(tmp_path) / "step-00000020.parquet"
    damaged.write_bytes(damaged.read_bytes()[:100])
    table, problems = read_table(tmp_path, LAYERS)
    assert table.to_pylist() == rows(10)
    assert list(problems) == [damaged]
    TableWriter(tmp_path, LAYERS).cut(5)
    assert damaged.exists()


def test_a_file_of_other_columns_is_named(tmp_path: Path) -> None:
    written(tmp_path, (10,))
    LAYERS.folder(tmp_path).rename(DECISIONS.folder(tmp_path))
    table, problems = read_table(tmp_path, DECISIONS)
    assert len(table) == 0 and len(problems) == 1


def test_a_foreign_file_stays_and_the_others_are_cut(tmp_path: Path) -> None:
    writer = written(tmp_path, (10, 20), (30,))
    foreign = LAYERS.folder(tmp_path) / "a-foreign.parquet"
    pq.write_table(pa.table({"x": [1]}), foreign)
    left = forget_after(tmp_path, 10)
    assert list(left) == [foreign] and "step" in left[foreign]
    assert read_table(tmp_path, LAYERS)[0].to_pylist() == rows(10)
    assert writer.cut(-1).keys() == {foreign} and foreign.exists()


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
