"""`RecordedRun`: what a run directory holds, as plain data."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from hf_pdyn.common.json_values import finite_or_none
from hf_pdyn.common.numbers import is_number
from hf_pdyn.policy.algorithm1 import BRANCHES

STEPS = "pdyn/steps"
"""How many optimizer steps a log record of telemetry covers."""
MEAN = re.compile(
    r"pdyn/(D_[wb](_clipped)?|G_w_over_G_b(_invariant)?|update_ratio|by_label/.+_share|by_group/.+/(grad_norm|grad_share|update_share)"
    r"|(update_norm|param_norm|v_hat_mean|one_norm|N_p|implicit_bias|eps_share)/.+)"
)
"""Metrics that are means over the steps of their record."""
_OF_A_GROUP = re.compile(r"pdyn/by_group/(.+)/grad_share")


@dataclass(frozen=True)
class Series:
    """One quantity of one run over its steps. All three have the same length, values are finite, steps rise."""

    steps: tuple[int, ...]
    epochs: tuple[float | None, ...]
    values: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.steps)


@dataclass(frozen=True)
class RecordedRun:
    """One run directory, read as far as it can be.

    name: its folder, with as many parents as make it unique among the runs of a report. history: the Trainer's log
    records, in order. step, max_steps: of the newest state; None where there is none. info: `pdyn/run.json`.
    problems: what is missing, damaged or left out, a sentence each.
    """

    directory: Path
    name: str
    history: tuple[dict[str, Any], ...]
    step: int | None
    max_steps: int | None
    info: dict[str, Any] | None
    layers: pa.Table
    decisions: pa.Table
    sample_losses: pa.Table
    allocation: pa.Table
    problems: tuple[str, ...]

    def series(self, name: str) -> Series:
        """A number of the log records; of several at one step, the last."""
        return self._all_series.get(name, Series((), (), ()))

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """Names of all numbers in the log records, in the order of their first appearance."""
        return tuple(self._all_series)

    @cached_property
    def named_groups(self) -> tuple[str, ...]:
        """The names of the user's own parameter groups that the log records have shares of."""
        return tuple(match[1] for name in self.metrics if (match := _OF_A_GROUP.fullmatch(name)))

    def last(self, name: str) -> float | None:
        """The last value of a number in the log records; of a mean over steps, that of the last complete record."""
        series = self.series(name)
        partial = self.partial_steps(name)
        complete = [value for step, value in zip(series.steps, series.values, strict=True) if step not in partial]
        return (complete or series.values or (None,))[-1]

    def partial_steps(self, name: str) -> frozenset[int]:
        """The steps at which a number is a mean over part of a logging interval only."""
        return frozenset(self.partial_records if MEAN.fullmatch(name) else ())

    @cached_property
    def partial_records(self) -> dict[int, int]:
        """Map the step of each partial record to the number of steps it covers, fewer than the record before covers.

        The first record, with no record before, is compared with the one after. The last record of a run is partial
        where the run's steps are no multiple of logging_steps, the first with logging_first_step.
        """
        covered = self.series(STEPS)
        neighbours = (*covered.values[1:2], *covered.values[:-1])
        steps = zip(covered.steps, covered.values, neighbours, strict=False)
        return {step: int(own) for step, own, neighbour in steps if own < neighbour}

    @cached_property
    def decided(self) -> tuple[dict[str, Any], ...]:
        """The decisions with a step, a p and a branch that is one; numbers that are not finite are None."""
        rows = [{key: finite_or_none(value) for key, value in row.items()} for row in self.decisions.to_pylist()]
        return tuple(
            row for row in rows if row["step"] is not None and row["p"] is not None and row["branch"] in BRANCHES
        )

    @cached_property
    def starts(self) -> tuple[dict[str, Any], ...]:
        """The configurations it was started and resumed with, oldest first."""
        return tuple(self.info["starts"]) if self.info else ()

    @cached_property
    def finished(self) -> bool | None:
        """Whether training came to its end; None where nothing tells."""
        if self.info is not None:
            return isinstance(self.info.get("finished"), dict)
        if self.step is None or not self.max_steps:
            return None
        return self.step >= self.max_steps

    @cached_property
    def status(self) -> str:
        """How far it came, in words."""
        finish = (self.info or {}).get("finished")
        step = whole_number(finish.get("step")) if isinstance(finish, dict) else self.step
        where = (
            "no step known"
            if step is None
            else f"step {step:,}" + (f" of {self.max_steps:,}" if self.max_steps else "")
        )
        if self.finished is None:
            return f"end unknown ({where})"
        return f"finished ({where})" if self.finished else f"not finished ({where})"

    @cached_property
    def log(self) -> tuple[str, ...]:
        """When it was started, resumed and finished, a line each."""
        lines = [f"{'resumed' if i else 'started'} {_moment(start)}" for i, start in enumerate(self.starts)]
        finish = (self.info or {}).get("finished")
        return (*lines, f"finished {_moment(finish)}") if isinstance(finish, dict) else tuple(lines)

    @cached_property
    def _all_series(self) -> dict[str, Series]:
        found: dict[str, dict[int, tuple[float | None, float]]] = {}
        for record in self.history:
            for name, value in record.items():
                if name not in ("step", "epoch") and is_number(value):
                    step, epoch = _taken_at(name, record)
                    found.setdefault(name, {})[step] = (epoch, float(value))
        series = {}
        for name, points in found.items():
            steps = sorted(points)
            series[name] = Series(
                tuple(steps), tuple(points[step][0] for step in steps), tuple(points[step][1] for step in steps)
            )
        return series


def _taken_at(name: str, record: dict[str, Any]) -> tuple[int, float | None]:
    """The step and the epoch of a number in a log record: spectra wait for the next record, and say since when."""
    measured = whole_number(record.get("pdyn/spectrum/step"))
    if name.startswith("pdyn/spectrum/") and measured is not None and measured != record["step"]:
        return measured, None
    return record["step"], record.get("epoch")


def _moment(entry: dict[str, Any]) -> str:
    time = printable(str(entry.get("time", "at an unknown time"))).replace("T", " ").replace("+00:00", " UTC")
    step = whole_number(entry.get("step"))
    return f"{time} at step {step:,}" if step else time


def whole_number(value: object) -> int | None:
    """`value` where it is an integer that a step may be, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 else None


def printable(text: str) -> str:
    """Return `text` with what no terminal and no page can show replaced, such as control characters."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def by_content(value: object) -> str:
    """A key by which JSON is sorted."""
    return json.dumps(value, sort_keys=True)
