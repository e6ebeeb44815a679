"""A window's means do not depend on where it was folded."""

from __future__ import annotations

import json
import math
from typing import Any
from unittest import mock

import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_pdyn.measure import windows
from hf_pdyn.measure.windows import MEASURED, QUANTITIES, Reading, Scope, Window

SCOPES = [Scope("weight"), Scope("bias_like"), Scope("weight", "h.0")]

SQUARES = st.floats(0, 2**20, width=32) | st.sampled_from([0.0, math.inf, math.nan])
STEPS = st.lists(
    st.tuples(
        st.lists(SQUARES, min_size=len(SCOPES) + 1, max_size=len(SCOPES) + 1),
        st.floats(0.1, 10),
        st.none() | st.lists(SQUARES, min_size=len(MEASURED) * len(SCOPES), max_size=len(MEASURED) * len(SCOPES)),
    ),
    max_size=12,
)


def add(window: Window, step: Any) -> None:
    gradients, max_norm, measured = step
    rows = None if measured is None else torch.tensor(measured).view(len(MEASURED), len(SCOPES))
    window.add(torch.tensor(gradients), max_norm, rows)


def reading_of(steps: list[Any]) -> Reading:
    window = Window(SCOPES, lambda sums: sums)
    for step in steps:
        add(window, step)
    return window.read()


@given(steps=STEPS, saved_after=st.sets(st.integers(0, 12)), fold_after=st.integers(1, 5))
def test_folds_and_checkpoints_leave_no_trace(steps: list[Any], saved_after: set[int], fold_after: int) -> None:
    window = Window(SCOPES, lambda sums: sums)
    with mock.patch.object(windows, "_FOLD_AFTER", fold_after):
        for i, step in enumerate(steps):
            add(window, step)
            assert len(window) == i + 1
            if i in saved_after:
                saved = json.loads(json.dumps(window.state_dict(), allow_nan=False))
                window = Window(SCOPES, lambda sums: sums)
                window.load_state_dict(saved)
        assert window.read() == reading_of(steps)
    assert len(window) == 0


@given(steps=STEPS)
def test_means_are_of_finite_steps(steps: list[Any]) -> None:
    """Rows are float32 and means float64, so these agree to its rounding."""
    reading = reading_of(steps)
    finite = [gradients for gradients, _, _ in steps if all(map(math.isfinite, gradients))]
    assert (reading.steps, reading.nonfinite_steps) == (len(finite), len(steps) - len(finite))
    for i, scope in enumerate(SCOPES):
        if finite:
            mean = sum(math.sqrt(gradients[i]) for gradients in finite) / len(finite)
            assert math.isclose(reading.grad_norm_clipped[scope], mean, rel_tol=1e-12)
            assert reading.grad_norm[scope] >= reading.grad_norm_clipped[scope] * (1 - 1e-12)
    assert reading.measured_steps <= sum(measured is not None for _, _, measured in steps)
    assert reading.quantities.keys() == (set(QUANTITIES) if any(measured for _, _, measured in steps) else set())
