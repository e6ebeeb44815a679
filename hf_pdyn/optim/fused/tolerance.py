"""How far a fused step may be from the exact one: what tests hold the kernels to, and every process checks again.

Numbers are compared as torch.testing.assert_close does: |ours - exact| <= tolerance * (1 + |exact|).
"""

from __future__ import annotations

import torch
from torch import Tensor

MOMENT = 3e-7
"""Roundings of float32 (6e-8), some on either side, relative to the larger of what is added: m and g are of order 1."""

PARAMETER = 1e-6
"""x^-p is good to 1e-6 (CPU) or 5e-7 (Triton), and to some roundings in torch; an update may be the whole parameter."""

SUM = 2e-6
"""float32 sums over a chunk, of terms that are powers; relative, for sums of one sign."""

# Nearly equal numbers may be rounded apart: one unit in the last place of bf16 (8 bits) or fp16 (11).
_ROUNDING = {torch.float32: PARAMETER, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def of_parameter(dtype: torch.dtype, p: float) -> float:
    """For theta after a step: the relative error of v counts p times, and at p=1/2 it is in PARAMETER."""
    return _ROUNDING[dtype] * max(1.0, 2 * abs(p))


def largest_error(ours: Tensor, exact: Tensor) -> float:
    """The largest |ours - exact| / (1 + |exact|), which a tolerance limits; NaN where either holds NaN."""
    exact = exact.double()
    errors = (ours.double() - exact).abs() / (1 + exact.abs())
    return errors.max().item() if errors.numel() else 0.0
