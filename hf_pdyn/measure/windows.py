"""An interval of optimizer steps: what was measured of them, and its means.

A window is filled on the device and read on the host. It knows no optimizer: `StepStatistics` adds the rows.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hf_pdyn.common.checkpoint_state import check_keys, damaged
from hf_pdyn.common.errors import shortened
from hf_pdyn.common.numbers import is_count, is_number
from hf_pdyn.optim.clipping import clip_factor
from hf_pdyn.optim.step_work import SUMS

QUANTITIES = ("update_norm", "param_norm", "v_hat_mean", "one_norm", "N_p", "implicit_bias", "eps_share")
"""What a measured step adds to the gradient norms."""

MEASURED = (*SUMS[1:-2], "coefficient", *SUMS[-2:])
"""The additive forms of QUANTITIES: what a step sums, and what `implicit_bias.coefficient_sums` does."""

_ALWAYS_DEFINED = [MEASURED.index(name) for name in ("update_sq", "param_sq", "one_norm", "numel")]

_FOLD_AFTER = 1024
"""Rows a window keeps on the device before it folds them, so that an epoch of any length needs little memory."""


@dataclass(frozen=True)
class Scope:
    """What a column of statistics is about: a whole pathway, or its part of a layer, a component or a named group."""

    pathway: str
    layer: str | None = None
    component: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class Reading:
    """Means over the steps of a window.

    steps: optimizer steps that entered `grad_norm`. nonfinite_steps: steps left out because a gradient
    held NaN or infinity. measured_steps: steps that entered QUANTITIES.
    grad_norm: mean L2 norm of the gradient before clipping; at pathway scope these are D_w and D_b.
    grad_norm_clipped: the same of the gradients the optimizer was given.
    quantities: the means of QUANTITIES; a scope is missing where this optimizer has no such quantity.
    """

    steps: int
    nonfinite_steps: int
    measured_steps: int
    grad_norm: Mapping[Scope, float]
    grad_norm_clipped: Mapping[Scope, float]
    quantities: Mapping[str, Mapping[Scope, float]]

    @property
    def weight_norm(self) -> float | None:
        """D_w; None where no weight is trained or no step was finite."""
        return self.grad_norm.get(Scope("weight"))

    @property
    def bias_norm(self) -> float | None:
        """D_b; None where nothing bias-like is trained or no step was finite."""
        return self.grad_norm.get(Scope("bias_like"))


@dataclass
class _Totals:
    """Sums over folded steps by scope, on the host in float64.

    Added one step after the other, so that where a window was folded (at a checkpoint, say) does not
    show in the result. None where a quantity is not defined, as JSON has no NaN.
    """

    steps: int = 0
    nonfinite_steps: int = 0
    measured_steps: int = 0
    grad_norm: list[float | None] = field(default_factory=list)
    grad_norm_clipped: list[float | None] = field(default_factory=list)
    quantities: dict[str, list[float | None]] = field(default_factory=dict)

    def check(self) -> None:
        """ValueError for what cannot be the sums over steps; it came from a checkpoint."""
        counts = (self.steps, self.nonfinite_steps, self.measured_steps)
        if not all(map(is_count, counts)):
            raise damaged(f"Steps of an interval must be whole numbers >= 0, got {shortened(str(counts))}")
        expected = set(QUANTITIES) if self.measured_steps or self.quantities else set()
        if not isinstance(self.quantities, dict) or self.quantities.keys() != expected:
            raise damaged(f"An interval with {self.measured_steps} measured steps must have {', '.join(QUANTITIES)}")
        for count, name, sums in (
            (self.steps, "grad_norm", self.grad_norm),
            (self.steps, "grad_norm_clipped", self.grad_norm_clipped),
            *((self.measured_steps, name, sums) for name, sums in self.quantities.items()),
        ):
            may_be_negative = name in ("N_p", "implicit_bias")  # N_p is beyond p = 1
            if not isinstance(sums, list) or not all(
                value is None or (is_number(value) and (value >= 0 or may_be_negative)) for value in sums
            ):
                raise damaged(f"Sums of {name} must be a list of finite numbers, >= 0, or null")
            if count and not sums:
                raise damaged(f"An interval of {count} steps must have sums of {name}")


class Window:
    """An interval of steps. Several windows of one `StepStatistics` are independent of each other.

    Args:
        scopes: what the columns are about.
        add_up: makes sums over this process's shards sums over all; one call for all steps of a reading.
    """

    def __init__(self, scopes: Sequence[Scope], add_up: Callable[[Tensor], Tensor]) -> None:
        self._scopes = scopes
        self._add_up = add_up
        self._reset()

    def __len__(self) -> int:
        """Steps seen since the last reading, non-finite ones included; costs no synchronisation."""
        return len(self._gradients) + self._totals.steps + self._totals.nonfinite_steps

    def add(self, gradients: Tensor, max_norm: float, measured: Tensor | None) -> None:
        """One step, of which nothing is read yet; every tensor holds this process's share of a sum.

        gradients: sums of squares by scope, then the square of the total norm that they were clipped by,
        shape (len(scopes) + 1,); clipping brought that down to `max_norm`.
        measured: the rows of MEASURED by scope, shape (len(MEASURED), len(scopes)), NaN where undefined.
        """
        self._gradients.append(gradients)
        self._max_norms.append(max_norm)
        if measured is not None:
            self._measured.append(measured)
        if len(self._gradients) >= _FOLD_AFTER:
            self._fold()

    def read(self) -> Reading:
        """The means since the last reading; starts the next interval. Waits for the device once."""
        self._fold()
        totals = self._totals
        self._reset()
        return Reading(
            steps=totals.steps,
            nonfinite_steps=totals.nonfinite_steps,
            measured_steps=totals.measured_steps,
            grad_norm=self._means(totals.grad_norm, totals.steps),
            grad_norm_clipped=self._means(totals.grad_norm_clipped, totals.steps),
            quantities={name: self._means(sums, totals.measured_steps) for name, sums in totals.quantities.items()},
        )

    def state_dict(self) -> dict[str, Any]:
        """The interval so far as a JSON-able dict. Waits for the device once."""
        self._fold()
        return dataclasses.asdict(self._totals)

    def load_state_dict(self, state: object) -> None:
        """Continue an interval; ValueError for one of another set of layers, or that `state_dict` cannot have given."""
        totals = _Totals(
            **check_keys(
                state, [total.name for total in dataclasses.fields(_Totals)], "The interval in this checkpoint"
            )
        )
        totals.check()
        widths = {len(sums) for sums in (totals.grad_norm, totals.grad_norm_clipped, *totals.quantities.values())}
        other = sorted(widths - {0, len(self._scopes)})
        if other:
            raise ValueError(
                f"The interval in this checkpoint has statistics of {other[0]} scopes, this run has "
                f"{len(self._scopes)}: other parameters are trained, or labelled otherwise. Resume with the same ones."
            )
        self._reset()
        self._totals = totals

    def _reset(self) -> None:
        self._gradients: list[Tensor] = []
        self._max_norms: list[float] = []
        self._measured: list[Tensor] = []
        self._totals = _Totals()

    def _means(self, sums: Sequence[float | None], count: int) -> dict[Scope, float]:
        pairs = zip(self._scopes, sums, strict=True) if count else ()
        return {scope: total / count for scope, total in pairs if total is not None}

    def _fold(self) -> None:
        if not self._gradients:
            return
        steps, measured, max_norms = self._gradients, self._measured, self._max_norms
        self._gradients, self._measured, self._max_norms = [], [], []
        # Together: one reduction for all steps, layers and quantities.
        sums = self._add_up(_flattened(steps, measured)).cpu().double()
        norms = sums[: len(steps) * len(steps[0])].view(len(steps), -1).sqrt()
        limits = torch.tensor(max_norms, dtype=torch.float64, device="cpu")
        self._fold_gradients(norms[:, :-1], clip_factor(norms[:, -1:], limits[:, None]))
        if measured:
            self._fold_measured(sums[norms.numel() :].view(len(measured), *measured[0].shape))

    def _fold_gradients(self, norms: Tensor, factors: Tensor) -> None:
        totals = self._totals
        # A total norm that overflowed clips every gradient to 0, by a factor of 0.
        finite = norms.isfinite().all(dim=1) & (factors[:, 0] > 0)
        totals.grad_norm = _add_in_order(totals.grad_norm, (norms / factors)[finite])
        totals.grad_norm_clipped = _add_in_order(totals.grad_norm_clipped, norms[finite])
        totals.steps += int(finite.sum())
        totals.nonfinite_steps += int((~finite).sum())

    def _fold_measured(self, sums: Tensor) -> None:
        totals = self._totals
        sums = sums[sums[:, _ALWAYS_DEFINED].isfinite().all(dim=(1, 2))]
        column = dict(zip(MEASURED, sums.unbind(dim=1), strict=True))
        means = {
            "update_norm": column["update_sq"].sqrt(),
            "param_norm": column["param_sq"].sqrt(),
            "v_hat_mean": column["v_hat_sum"] / column["numel"],
            "one_norm": column["one_norm"],
            "N_p": column["N_p"],
            "implicit_bias": column["coefficient"] / column["moved"],
            "eps_share": column["ruled_by_eps"] / column["moved"],
        }
        for name in QUANTITIES:
            totals.quantities[name] = _add_in_order(totals.quantities.get(name, []), means[name])
        totals.measured_steps += len(sums)


def _flattened(steps: Sequence[Tensor], measured: Sequence[Tensor]) -> Tensor:
    """All rows, one after the other; NaN for all of them where this process cannot put them together.

    It must not fail alone: the others wait for its part. NaN leaves the steps out on every process.
    """
    try:
        return torch.cat([tensor.flatten() for tensor in (*steps, *measured)])
    except Exception as error:
        warnings.warn(f"hf_pdyn lost the statistics of {len(steps)} steps: {str(error)[:200]}", stacklevel=2)
        count = sum(tensor.numel() for tensor in (*steps, *measured))
        return steps[0].new_full((count,), math.nan)


def _add_in_order(sums: Sequence[float | None], rows: Tensor) -> list[float | None]:
    """`sums` plus each of `rows`, of shape (steps, scopes), one step after the other."""
    start = [math.nan if total is None else total for total in sums] or [0.0] * rows.shape[1]
    added = torch.cat([torch.tensor([start], dtype=rows.dtype, device="cpu"), rows]).cumsum(dim=0)[-1]
    return [total if math.isfinite(total) else None for total in added.tolist()]
