"""Losses of single samples: from the rows of a run to what its charts show of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hf_pdyn.common.json_values import finite_or_none
from hf_pdyn.measure.sample_loss import hard_samples, jaccard, quantiles
from hf_pdyn.report import vega
from hf_pdyn.report.columns import encoded, known

_QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}


@dataclass(frozen=True, eq=False)
class EpochLosses:
    """Losses of a split after an epoch: (n,) each, what is not finite among them.

    epoch: None where it is not known. place: (2, n), each sample's index in its data set, and of packed documents which
    of the sample's it is.
    """

    epoch: float | None
    place: NDArray[np.int64]
    loss: NDArray[np.float64]


def losses_by_epoch(table: pa.Table) -> dict[str, dict[int, EpochLosses]]:
    """By split, by step, in their order."""
    table = known(table, ("split", "step", "index", "loss"))
    codes, splits = encoded(table["split"])
    step, epoch, loss = (table[name].to_numpy() for name in ("step", "epoch", "loss"))
    place = np.stack([table["index"].to_numpy(), table["part"].fill_null(0).to_numpy()])
    found: dict[str, dict[int, EpochLosses]] = {}
    for code, split in enumerate(splits):
        rows = np.flatnonzero(codes == code)
        for own in np.split(rows, np.flatnonzero(np.diff(step[rows])) + 1):
            moment = finite_or_none(float(epoch[own[0]]))
            found.setdefault(split, {})[int(step[own[0]])] = EpochLosses(moment, place[:, own], loss[own])
    return found


def distribution(loss: NDArray[np.float64]) -> dict[str, float | None]:
    """Quantiles, None where they are infinite, the mean of the finite losses, and how many are not."""
    finite = loss[np.isfinite(loss)]
    found = dict(zip(_QUANTILES, quantiles(loss, list(_QUANTILES.values())), strict=True))
    found["mean"] = float(finite.mean()) if len(finite) else np.inf
    numbers = {name: vega.short(value) if np.isfinite(value) else None for name, value in found.items()}
    return numbers | {"nonfinite": len(loss) - len(finite)}


def not_drawn(rows: Iterable[dict[str, Any]]) -> str:
    """A sentence on the runs of which a quantile is infinite."""
    runs = list(dict.fromkeys(row["run"] for row in rows if any(row[name] is None for name in _QUANTILES)))
    named = ", ".join(runs[:5]) + (f" and {len(runs) - 5} more" if len(runs) > 5 else "")
    return f" Infinite quantiles are not drawn: {named}." if runs else ""


@dataclass(frozen=True, eq=False)
class HardSamples:
    """The hard samples after an epoch. measured: (2, n), places of all, ascending. samples: which of them are hard."""

    epoch: float | None
    measured: NDArray[np.int64]
    samples: NDArray[np.int64]

    @classmethod
    def of(cls, epoch: EpochLosses) -> HardSamples:
        """Those of an epoch."""
        # Ascending, as of equal losses all runs must take the same ones.
        measured, first = np.unique(epoch.place, axis=1, return_index=True)
        return cls(epoch.epoch, measured, hard_samples(epoch.loss[first]))


def overlap(one: HardSamples, other: HardSamples) -> dict[str, Any]:
    """Jaccard's index as `value`, None where other samples were measured, and a `note`."""
    if not np.array_equal(one.measured, other.measured):
        return {"value": None, "note": "measured other samples"}
    when = " and ".join(f"{at:.3g}" for at in dict.fromkeys((one.epoch, other.epoch)) if at is not None)
    note = f"{len(one.samples)} hard samples each, epoch {when or 'unknown'}"
    return {"value": vega.short(jaccard(one.samples, other.samples)), "note": note}
