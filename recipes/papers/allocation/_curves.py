"""Whether quantities of many runs are functions of one variable, and what a second one adds."""

from __future__ import annotations

import numpy as np

PAPER: dict[tuple[float, float], tuple[float, ...]] = {
    (0.01, -0.4): (77.58, 0.987, 1.417, 0.22, 4.246, 5.32, 1.78),
    (0.01, -0.3): (78.53, 0.921, 1.424, 0.157, 4.297, 5.484, 2.14),
    (0.01, -0.2): (78.41, 0.889, 1.462, 0.1, 4.367, 5.68, 2.56),
    (0.01, -0.1): (78.15, 0.876, 1.531, 0.068, 4.52, 6.148, 3.24),
    (0.01, 0.0): (78.66, 0.859, 1.578, 0.041, 4.586, 6.523, 3.68),
    (0.01, 0.1): (77.87, 0.889, 1.723, 0.021, 4.922, 7.367, 4.78),
    (0.01, 0.2): (77.79, 0.947, 1.956, 0.008, 5.5, 8.462, 6.32),
    (0.01, 0.3): (77.09, 1.11, 2.368, 0.003, 6.563, 10.688, 8.48),
    (0.1, -0.4): (78.16, 0.872, 1.487, 0.075, 4.43, 5.825, 2.81),
    (0.1, -0.3): (78.24, 0.862, 1.512, 0.059, 4.391, 6.063, 2.85),
    (0.1, -0.2): (78.46, 0.841, 1.529, 0.046, 4.422, 6.356, 3.24),
    (0.1, -0.1): (78.34, 0.86, 1.646, 0.027, 4.676, 6.949, 4.06),
    (0.1, 0.0): (78.69, 0.863, 1.76, 0.014, 4.86, 7.613, 4.66),
    (0.1, 0.1): (77.28, 0.973, 2.006, 0.007, 5.5, 8.836, 6.21),
    (0.1, 0.2): (76.23, 1.195, 2.599, 0.002, 7.165, 11.774, 9.34),
    (0.1, 0.3): (75.28, 1.401, 3.091, 0.001, 8.509, 13.789, 11.07),
}
"""Table 2 as printed, by learning rate and p: in percent for accuracy (the first) and L > 5 (the last)."""
COLUMNS = ("accuracy", "mean", "std", "p50", "p95", "p99", "share_above_5")
"""The columns of PAPER."""


def r_squared(y: np.ndarray, *columns: np.ndarray) -> float:
    """The R^2 of a least-squares fit of y (n,) by the columns (n,) and a constant."""
    design = np.stack([np.ones_like(y), *columns], 1)
    residual = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    return float(1 - (residual**2).sum() / ((y - y.mean()) ** 2).sum())


def along(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The columns of a quadratic curve along x, centred."""
    return x - x.mean(), (x - x.mean()) ** 2


def left_for(p: np.ndarray, y: np.ndarray, x: np.ndarray) -> float:
    """The slope of y over p at equal x, all (n,): of a fit by a quadratic curve along x and a line over p."""
    design = np.stack([np.ones_like(y), *along(x), p], 1)
    return float(np.linalg.lstsq(design, y, rcond=None)[0][-1])


def paper_column(name: str) -> np.ndarray:
    """Over the cells of Table 2, in its order; the logarithm, but for accuracy."""
    values = np.array([cell[COLUMNS.index(name)] for cell in PAPER.values()])
    return values if name == "accuracy" else np.log(values)


def shift_of_p(median: dict[float, np.ndarray], exponents: np.ndarray) -> float:
    """By how much p must fall where the larger of two learning rates is taken, for equal medians.

    median: log p50 over exponents, by learning rate. The shift is the mean over those medians of the larger rate that
    the smaller one reaches too.
    """
    small, large = (median[lr] for lr in sorted(median))
    order = np.argsort(small)
    inside = (large >= small.min()) & (large <= small.max())
    if not inside.any():
        return float("nan")
    return float((np.interp(large, small[order], exponents[order]) - exponents)[inside].mean())
