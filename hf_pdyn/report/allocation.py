"""The allocation curves of a run: from its rows to power moments by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from hf_pdyn.common.numbers import is_number
from hf_pdyn.policy.allocation_curve import PowerMoments


@dataclass(frozen=True)
class Curves:
    """What was measured at one step. p: the run's. Moments by pathway, and by pathway and component."""

    step: int
    p: float
    pathways: dict[str, PowerMoments] = field(default_factory=dict)
    components: dict[tuple[str, str], PowerMoments] = field(default_factory=dict)


def curves(table: pa.Table) -> tuple[Curves, ...]:
    """The curves of every step, in their order; rows of layers, and those that hold no whole curve, are left out."""
    found: dict[int, Curves] = {}
    for row in table.filter(table["layer"].is_null()).to_pylist():
        moments = _moments(row)
        if moments is None or row["step"] is None or not is_number(row["p"]) or row["pathway"] is None:
            continue
        at = found.setdefault(row["step"], Curves(row["step"], row["p"]))
        if row["component"] is None:
            at.pathways[row["pathway"]] = moments
        else:
            at.components[row["pathway"], row["component"]] = moments
    return tuple(found[step] for step in sorted(found))


def _moments(row: Mapping[str, Any]) -> PowerMoments | None:
    values = row["log_moments"]
    if values is None or not all(map(is_number, values)):
        return None
    try:
        return PowerMoments(tuple(values))
    except ValueError:  # of another grid
        return None
