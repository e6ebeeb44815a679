"""IBA's bilinear model (section 5): on which side paths come down into the valley.

E = (y - x t1 t2)^2 / 2 is 0 along the hyperbola t1 t2 = y / x. Its gradient has the one-norm x |r| (|t1| + |t2|),
with the residual r = x t1 t2 - y. So of two paths at the same loss, the one with the smaller |t1| + |t2| has the
smaller norm; where it meets the valley, it comes out on the side of smaller norms. Sign descent keeps t2 - t1,
whatever its hyperparameters, so from one start it comes out at one point.
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from papers.adam_bias._problems import padam_path

X, Y = 2.0, 3.0


def start(seed: int) -> Tensor:
    """(2,). Above the valley, and off the diagonal t1 = t2, on which all paths stay."""
    random = torch.rand(2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.tensor([2.2, 3.2], dtype=torch.float64) + 0.6 * random


def loss(theta: Tensor) -> Tensor:
    """E of parameters (..., 2), summed over rows."""
    return residual(theta).square().sum() / 2


def residual(theta: Tensor) -> Tensor:
    """r = x t1 t2 - y of parameters (..., 2)."""
    return X * theta.prod(-1) - Y


def steps(theta: Tensor, *, p: float, **hyperparameters: Any) -> Iterator[Tensor]:
    """Padam's path from theta, (2,) each, without end."""
    for rows in padam_path(itertools.repeat(loss), theta, exponents=[p], **hyperparameters):
        yield rows[0]


def norms(path: Iterable[Tensor], residuals: Iterable[float]) -> list[float]:
    """log(|t1| + |t2|) where a path first comes down to each of some falling residuals, on the chord of that step."""
    found, points = [], iter(path)
    before = after = next(points)
    for level in residuals:
        while residual(after) > level:
            before, after = after, next(points)
        share = (residual(before) - level) / (residual(before) - residual(after))
        found.append(float(torch.lerp(before, after, share).abs().sum().log()))
    return found


def norms_of_sign_descent(theta: Tensor, residuals: Iterable[float]) -> list[float]:
    """The same of sign descent in infinitely small steps: (t1 + t2)^2 = (t2 - t1)^2 + 4 t1 t2, and t2 - t1 stays."""
    apart = theta.diff().square()
    return [float((apart + 4 * (level + Y) / X).log() / 2) for level in residuals]
