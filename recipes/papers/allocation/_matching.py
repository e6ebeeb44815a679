"""Learning rates that give updates the size that they have in other trainings."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from papers._claims.rows import Result

Train = Callable[[np.ndarray], Sequence[Result]]
"""Takes learning rate factors (trainings, epochs)."""


def match_update_sizes(train: Train, wanted: np.ndarray, usual: np.ndarray, rounds: int) -> list[dict[str, Any]]:
    """Return, for every training, the round whose mean update norms by epoch came closest to the wanted ones.

    wanted, usual: (trainings, epochs), those to be had, and those without factors. Other steps lead elsewhere, where
    gradients have another size: hence rounds. A round that diverged replaces no other one, and the next one has smaller
    factors.

    Returns:
        What `train` returned, with `lr_factors`, and `matched_within`, the largest relative difference; NaN where no
        round ended in numbers.
    """
    factors = np.where(np.isfinite(wanted / usual), wanted / usual, 1.0)
    best: list[dict[str, Any]] = [{} for _ in wanted]
    for _ in range(rounds):
        for i, result in enumerate(train(factors)):
            reached = update_sizes(result) / wanted[i]
            off = float(np.abs(reached - 1).max())
            if not best[i] or off < best[i]["matched_within"] or not np.isfinite(best[i]["matched_within"]):
                best[i] = {**result, "lr_factors": factors[i].tolist(), "matched_within": off}
            if np.isfinite(reached).all() and (reached > 0).all():
                factors[i] = factors[i] / reached
            elif np.isfinite(best[i]["matched_within"]):  # halfway between what led to numbers and what did not
                factors[i] = np.sqrt(factors[i] * np.array(best[i]["lr_factors"]))
            else:
                factors[i] = factors[i] / 2
    return best


def update_sizes(result: Result) -> np.ndarray:
    """The mean update norm over all parameters, by epoch; NaN where it was not finite."""
    return np.hypot(*(np.array(result["curves"][name], float) for name in ("update_w", "update_b")))
