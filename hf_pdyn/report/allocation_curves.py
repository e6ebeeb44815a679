"""Allocation curves: from the rows of a run to the moments of every label at every measured step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hf_pdyn.policy.allocation_curve import COUNT, PowerMoments
from hf_pdyn.report.columns import encoded, known

_LARGEST_LOGARITHM = 700.0
"""The largest logarithm of a sum that float64 holds."""
_LEAST_CONVEX = -1e-3
"""log M is convex in s, so its second differences are positive, but for rounding."""


@dataclass(frozen=True, eq=False)
class AllocationCurves:
    """The curves of a run's pathways and components, as arrays with a row a curve, by step.

    step, p: (n,), p the run's and NaN where it is not known. label: (n,), where the name of each stands in `labels`,
    which is `weight` for a pathway and `weight/attention` for its part of a component. log_moments: (n, COUNT).
    """

    labels: list[str]
    label: NDArray[np.int32]
    step: NDArray[np.int64]
    p: NDArray[np.float64]
    log_moments: NDArray[np.float64]

    @classmethod
    def of(cls, table: pa.Table) -> AllocationCurves:
        """Those of `RecordedRun.allocation`, without its layers and without what no measurement can have written."""
        table = known(table, ("step", "pathway", "log_moments")).filter(pc.field("layer").is_null())
        table = table.filter(pc.equal(pc.list_value_length(table["log_moments"]), COUNT))
        log_moments = pc.list_flatten(table["log_moments"]).to_numpy().reshape(-1, COUNT)
        possible = _possible(log_moments)
        table = table.filter(pa.array(possible))
        label, labels = encoded(
            pc.binary_join_element_wise(table["pathway"], table["component"], "/", null_handling="skip")
        )
        return cls(labels, label, table["step"].to_numpy(), table["p"].to_numpy(), log_moments[possible])

    @property
    def steps(self) -> list[int]:
        """The steps that have a curve, ascending."""
        found: list[int] = np.unique(self.step).tolist()
        return found

    def at(self, step: int) -> dict[str, PowerMoments]:
        """The moments of a step by label; of two rows of one label the last."""
        rows = np.flatnonzero(self.step == step)
        return {self.labels[self.label[row]]: PowerMoments(tuple(self.log_moments[row].tolist())) for row in rows}

    def p_at(self, step: int) -> float | None:
        """The p that the run had at a step; None where no row knows."""
        found = self.p[(self.step == step) & np.isfinite(self.p)]
        return float(found[-1]) if len(found) else None


def _possible(log_moments: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(n,): which rows can be the logarithms of an M, so that whatever follows from them is a float."""
    with np.errstate(invalid="ignore"):  # infinity - infinity
        convex = np.diff(log_moments, n=2, axis=1) >= _LEAST_CONVEX
    finite = np.abs(log_moments) <= _LARGEST_LOGARITHM  # NaN is not
    return np.asarray(convex.all(axis=1) & finite.all(axis=1))
