"""Rows of one kind, from a callback to the run's directory."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from transformers import TrainerState

from hf_pdyn.run_dir.tables import TableKind, TableWriter

_FLUSH_AT = 50_000
"""Rows that are kept in memory at most; 5 MB."""


class RowBuffer:
    """Writes the rows of one training, on the main process; on others it does nothing.

    What cannot be written (a full disk) is kept and tried again at the next flush, with one warning: telemetry never
    ends a training.
    """

    def __init__(self, kind: TableKind) -> None:
        self.kind = kind
        self._writer: TableWriter | None = None
        self._warned = False
        self._first_step = 0

    def begin(self, run_dir: str, state: TrainerState) -> None:
        """Start a training, or go on with the one that a checkpoint is of."""
        self._writer, self._warned = None, False
        self._first_step = state.global_step
        if state.is_world_process_zero:
            self._writer = TableWriter(run_dir, self.kind)

    def belong_to(self, run_id: str | None) -> None:
        """Name the run whose rows these are, once its id is known."""
        if self._writer is not None:
            self._writer.run_id = run_id

    def add(self, state: TrainerState, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rows of this moment, without step and epoch."""
        if self._writer is not None:
            self._writer.add(_at(state, rows))
            # Until all callbacks have begun, files are an earlier run's, and are then dropped.
            begun = state.global_step > self._first_step
            if begun and len(self._writer) >= _FLUSH_AT and not self._warned:
                self.flush()

    def write(self, state: TrainerState, rows: Iterable[Mapping[str, Any]], name: str) -> None:
        """Rows of this moment, at once, to a file of that name, however many there are."""
        if self._writer is not None:
            self._writer.add(_at(state, rows))
            self.flush(name)

    def flush(self, name: str | None = None) -> None:
        """Write what was added since the last flush, to a file of that name or of the last step."""
        self._try(lambda writer: writer.flush(name))

    def _try(self, write: Callable[[TableWriter], object]) -> None:
        try:
            if self._writer is not None:
                write(self._writer)
        except Exception as error:
            if not self._warned:
                warnings.warn(
                    f"hf_pdyn could not write its {self.kind.name} records: {str(error)[:200]}. Training goes on, and "
                    "they are tried again with the next ones.",
                    stacklevel=2,
                )
            self._warned = True


def _at(state: TrainerState, rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{"step": state.global_step, "epoch": state.epoch, **row} for row in rows]
