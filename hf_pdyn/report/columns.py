"""Columns of a run's tables as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hf_pdyn.report.recorded_run import printable


def known(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    """The rows that have all of these."""
    return table.filter(reduce(pc.and_, [pc.is_valid(table[column]) for column in columns]))


def encoded(column: pa.ChunkedArray) -> tuple[NDArray[np.int32], list[str]]:
    """Which of its words each row has, and the words."""
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.indices.to_numpy(), [printable(word) for word in encoded.dictionary.to_pylist()]
