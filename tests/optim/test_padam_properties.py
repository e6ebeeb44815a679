"""Padam follows the scalar reference for any hyper-parameters, not only for the chosen ones of `test_padam`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.optim.test_padam import PATHS, gradients, run_padam
from tests.reference.padam_reference import PadamReference

STEPS, NUMEL = 5, 12

FLAGS = st.fixed_dictionaries(
    {
        "p": st.floats(-0.5, 1.0),
        "lr": st.floats(0, 0.1),
        "eps": st.floats(-12, 0).map(lambda exponent: 10**exponent),
        "weight_decay": st.floats(0, 1),
        "amsgrad": st.booleans(),
        "maximize": st.booleans(),
        "decoupled_weight_decay": st.booleans(),
        "update_scale": st.sampled_from(["raw", "adam"]),
        "nonfinite": st.sampled_from(["apply", "skip"]),
    }
)
BETA1, BETA2 = st.floats(0, 0.99), st.floats(0, 0.9999)

# Relative to the largest parameter or update on the way: operations in another order, and in float32 the rounding of
# the moments, whose power costs most at p = 1.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5}


@pytest.mark.parametrize(
    ("path", "dtype"),
    [("tensor", torch.float64), ("foreach", torch.float64), ("tensor", torch.float32), ("fused", torch.float32)],
    ids=str,
)
@settings(max_examples=60)
@given(flags=FLAGS, beta1=BETA1, beta2=BETA2, seed=st.integers(0, 2**31))
def test_any_hyperparameters(
    path: str, dtype: torch.dtype, flags: dict[str, Any], beta1: float, beta2: float, seed: int
) -> None:
    start = torch.linspace(-1, 1, NUMEL, dtype=torch.float64).to(dtype)
    grads = [gradient.to(dtype).double() for gradient in gradients(NUMEL, STEPS, seed)]
    reference = PadamReference(start.double().tolist(), beta1=beta1, beta2=beta2, **flags)
    largest = 1.0
    for gradient in grads:
        reference.step(gradient.tolist())
        largest = max(largest, *map(abs, reference.theta), *map(abs, reference.last_update))
    assume(largest < 1e30)  # float32 overflows beyond
    ours, _ = run_padam(start, grads, betas=(beta1, beta2), **flags, **PATHS[path])
    expected = torch.tensor(reference.theta, dtype=torch.float64)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=TOLERANCE[dtype] * largest)
