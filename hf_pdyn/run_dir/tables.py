"""Rows of telemetry in a run directory, as Parquet files beside the Trainer's.

    OUTPUT_DIR/pdyn/layers/step-00000200.parquet         rows up to that step, since the file before
    OUTPUT_DIR/pdyn/decisions/step-00000200.parquet
    OUTPUT_DIR/pdyn/allocation/step-00000200.parquet
    OUTPUT_DIR/pdyn/sample_losses/epoch-0001.parquet

A folder is one data set: `datasets.load_dataset("parquet", data_dir="OUTPUT_DIR/pdyn/layers")`. Files are written
elsewhere and renamed, so each is whole; a killed run lacks the rows since its last file. A file's metadata has the id
of the run that wrote it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hf_pdyn.common.atomic import irregularity, replacing, sweep

FOLDER = "pdyn"
OF_ANOTHER_RUN = "another run wrote it"
"""Why a file is left out that is whole."""


@dataclass(frozen=True)
class TableKind:
    """One folder of files, and the columns of its rows: `step` (the optimizer steps done), `epoch`, and its own."""

    name: str
    schema: pa.Schema

    def folder(self, run_dir: str | Path) -> Path:
        """Return the folder of these files in a run directory."""
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
"""Algorithm 1's, named as in `policy.algorithm1.ControlState`; p is that of the coming interval."""

SAMPLE_LOSSES = _table_kind(
    "sample_losses", split=pa.string(), index=pa.int64(), part=pa.int64(), loss=pa.float64(), correct=pa.bool_()
)
"""One row a sample, or a document packed into it. index: of the sample in its data set. part: which of its documents, 0
where it is one. correct: null where nothing is classified."""

ALLOCATION = _table_kind(
    "allocation",
    pathway=pa.string(),
    component=pa.string(),
    layer=pa.string(),
    p=pa.float64(),
    log_moments=pa.list_(pa.float64()),
)
"""log M(s) of a pathway, or of its part of a component or a layer, at `policy.allocation_curve.EXPONENTS`; p is the
run's."""

TABLE_KINDS = {kind.name: kind for kind in (LAYERS, DECISIONS, SAMPLE_LOSSES, ALLOCATION)}


class TableWriter:
    """Appends rows of one kind to a run, a file at a time. For one process of a launch.

    Attributes:
        run_id: written into every file, so that what a later run may drop is known; None where a run has none.
    """

    def __init__(self, run_dir: str | Path, kind: TableKind, run_id: str | None = None) -> None:
        self._folder, self._kind, self.run_id = kind.folder(run_dir), kind, run_id
        self._rows: list[Mapping[str, Any]] = []

    def __len__(self) -> int:
        """Rows that are in no file yet."""
        return len(self._rows)

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows by column; a column left out is null. Writes nothing yet."""
        self._rows.extend(rows)

    def flush(self, name: str | None = None) -> Path | None:
        """Write what was added to a file of that name, by default of the last step; None where there is nothing.

        A file of that name that is not this run's stays, and the rows get a name beside it.
        """
        if not self._rows:
            return None
        schema = self._kind.schema.with_metadata({_RUN: self.run_id} if self.run_id else None)
        table = pa.Table.from_pylist([dict(row) for row in self._rows], schema=schema)
        path = self._place(name or f"step-{max(row['step'] for row in self._rows):08d}")
        if path.exists() and name is None:  # flushed twice at one step
            table = pa.concat_tables([pq.read_table(path), table])
        _write(table, path)
        self._rows = []
        return path

    def _place(self, name: str) -> Path:
        names = chain([name], (f"{name}-{number}" for number in count(2)))
        paths = (self._folder / f"{name}.parquet" for name in names)
        return next(path for path in paths if not os.path.lexists(path) or self._wrote(path))

    def _wrote(self, path: Path) -> bool:
        try:
            return self.run_id is not None and _run_of(path, self._kind) == self.run_id
        except _UNREADABLE:
            return False


def forget_after(run_dir: str | Path, steps: Mapping[str, int]) -> dict[Path, str]:
    """Drop the rows that each run wrote after its step in `steps`, all of them after -1, by the runs' ids.

    Files that killed processes left unfinished go as well.

    Returns:
        The files that stay as they are, with the reason: damaged, foreign, reached by a link, or of another run.
    """
    left: dict[Path, str] = {}
    for kind in TABLE_KINDS.values():
        folder = kind.folder(run_dir)
        links = [path for path in (folder.parent, folder) if path.is_symlink()]
        if not links:
            sweep(folder, ".parquet")
        for path in sorted(folder.glob("*.parquet")):
            try:
                if links:
                    raise ValueError(f"{links[0]} is a link")
                run_id = _run_of(path, kind)
                if run_id is None or run_id not in steps:
                    raise ValueError(OF_ANOTHER_RUN if run_id else "it has no run's id")
                _cut(path, steps[run_id])
            except _UNREADABLE as error:
                left[path] = _reason(error)
    return left


def read_table(run_dir: str | Path, kind: TableKind, run_id: str | None = None) -> tuple[pa.Table, dict[Path, str]]:
    """Return all rows of a kind, by step; and the files that could not be read, with the reason.

    Args:
        run_dir: the run directory.
        kind: one of TABLE_KINDS.
        run_id: leave out, with a reason, the files that have another run's id.
    """
    tables, problems = [], {}
    for path in sorted(kind.folder(run_dir).glob("*.parquet")):
        try:
            irregular = irregularity(path)
            if irregular is not None:
                raise ValueError(f"it is {irregular}, no regular file")
            table = pq.read_table(path)
            if run_id and _id_in(table.schema) not in (None, run_id):
                raise ValueError(OF_ANOTHER_RUN)
            table = table.select(kind.schema.names).cast(kind.schema)
            table.validate(full=True)  # text that is not UTF-8, say
            tables.append(table)
        except _UNREADABLE as error:
            problems[path] = _reason(error)
    if not tables:
        return kind.schema.empty_table(), problems
    return pa.concat_tables(tables).sort_by("step"), problems


_RUN = b"hf_pdyn.run"
"""The key of the run's id in a file's metadata."""
_UNREADABLE = (OSError, KeyError, ValueError, pa.ArrowException)
"""The errors that reading a damaged or foreign file raises."""


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _run_of(path: Path, kind: TableKind) -> str | None:
    """The id of the run that wrote a file; None where it has none. ValueError for what is no file of this kind."""
    irregular = irregularity(path, follow_links=False)
    if irregular is not None:
        raise ValueError(f"it is {irregular}, no regular file")
    schema = pq.read_schema(path)
    if not schema.equals(kind.schema):
        raise ValueError(f"its columns are not those of {kind.name}: {', '.join(kind.schema.names)}")
    return _id_in(schema)


def _id_in(schema: pa.Schema) -> str | None:
    found = (schema.metadata or {}).get(_RUN)
    return None if found is None else found.decode(errors="replace")


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
