"""What a run leaves in its output directory beside the Trainer's files: rows of telemetry, as Parquet.

    OUTPUT_DIR/pdyn/layers/step-00000200.parquet         rows up to that step, since the file before
    OUTPUT_DIR/pdyn/decisions/step-00000200.parquet
    OUTPUT_DIR/pdyn/sample_losses/epoch-0001.parquet

A folder is one data set: `datasets.load_dataset("parquet", data_dir="OUTPUT_DIR/pdyn/layers")`. Files are written
elsewhere and renamed, so each is whole; of a killed run, rows since the last file are lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hf_pdyn.common.atomic import replacing

FOLDER = "pdyn"


@dataclass(frozen=True)
class TableKind:
    """One folder of files, and the columns of its rows: `step` (the optimizer steps done), `epoch`, and its own."""

    name: str
    schema: pa.Schema

    def folder(self, run_dir: str | Path) -> Path:
        """Where its files are."""
        return Path(run_dir) / FOLDER / self.name


def _table_kind(folder: str, /, **columns: pa.DataType) -> TableKind:
    return TableKind(folder, pa.schema({"step": pa.int64(), "epoch": pa.float64(), **columns}))


LAYERS = _table_kind("layers", layer=pa.string(), part=pa.string(), name=pa.string(), value=pa.float64())
"""Quantities of one layer. part: the pathway, or of spectra the product (`attention`, `attention/head 3`, `lora`)."""

DECISIONS = _table_kind(
    "decisions",
    interval=pa.int64(),
    branch=pa.string(),
    p=pa.float64(),
    weight_norm=pa.float64(),
    bias_norm=pa.float64(),
    weight_change=pa.float64(),
    bias_change=pa.float64(),
    bias_norm_min=pa.float64(),
)
"""Algorithm 1's, named as in `control.ControlState`; p is that of the coming interval."""

SAMPLE_LOSSES = _table_kind("sample_losses", split=pa.string(), index=pa.int64(), loss=pa.float64(), correct=pa.bool_())
"""One row a sample, index in its data set. correct: null where nothing is classified."""

TABLE_KINDS = {kind.name: kind for kind in (LAYERS, DECISIONS, SAMPLE_LOSSES)}


class TableWriter:
    """Appends rows of one kind to a run, a file at a time. For one process of a launch."""

    def __init__(self, run_dir: str | Path, kind: TableKind) -> None:
        self._folder, self._kind = kind.folder(run_dir), kind
        self._rows: list[Mapping[str, Any]] = []

    def __len__(self) -> int:
        """Rows that are in no file yet."""
        return len(self._rows)

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rows by column; a column left out is null. Writes nothing yet."""
        self._rows.extend(rows)

    def flush(self, name: str | None = None) -> Path | None:
        """Write what was added to a file of that name, by default of the last step; None where there is nothing."""
        if not self._rows:
            return None
        table = pa.Table.from_pylist([dict(row) for row in self._rows], schema=self._kind.schema)
        name_of_step = f"step-{max(row['step'] for row in self._rows):08d}"
        path = self._folder / f"{name or name_of_step}.parquet"
        if path.exists() and name is None:  # flushed twice at one step
            table = pa.concat_tables([pq.read_table(path), table])
        _write(table, path)
        self._rows = []
        return path

    def cut(self, step: int) -> dict[Path, str]:
        """Forget every row after that step, from which the run is being repeated.

        Returns the files that stay as they are because they cannot be read or written, with the reason.
        """
        self._rows = [row for row in self._rows if row["step"] <= step]
        left: dict[Path, str] = {}
        for path in sorted(self._folder.glob("*.parquet")):
            try:
                _cut(path, step)
            except _UNREADABLE as error:
                left[path] = _reason(error)
        return left


def forget_after(run_dir: str | Path, step: int) -> dict[Path, str]:
    """Forget every row of any kind after that step: the run is repeated from there, or begins anew at -1.

    Returns the files that stay as they are, with the reason.
    """
    left: dict[Path, str] = {}
    for kind in TABLE_KINDS.values():
        left |= TableWriter(run_dir, kind).cut(step)
    return left


def read_table(run_dir: str | Path, kind: TableKind) -> tuple[pa.Table, dict[Path, str]]:
    """All rows of a kind, by step; and the files that could not be read, with the reason."""
    tables, problems = [], {}
    for path in sorted(kind.folder(run_dir).glob("*.parquet")):
        try:
            tables.append(pq.read_table(path).select(kind.schema.names).cast(kind.schema))
        except _UNREADABLE as error:
            problems[path] = _reason(error)
    if not tables:
        return kind.schema.empty_table(), problems
    return pa.concat_tables(tables).sort_by("step"), problems


_UNREADABLE = (OSError, KeyError, ValueError, pa.ArrowException)
"""What a damaged or foreign file raises."""


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _cut(path: Path, step: int) -> None:
    table = pq.read_table(path)
    kept = table.filter(pc.less_equal(table["step"], step))
    if len(kept) == 0:
        path.unlink()
    elif len(kept) < len(table):
        _write(kept, path)


def _write(table: pa.Table, path: Path) -> None:
    with replacing(path) as unfinished:
        pq.write_table(table, unfinished)
