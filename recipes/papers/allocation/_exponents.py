"""How p moves in networks that are trained together: schedules, Algorithm 1, and decisions at random."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from hf_pdyn.policy.algorithm1 import ControlConfig, ControlState, next_p
from hf_pdyn.policy.schedules import Schedule

ALGORITHM_1, RANDOM_SIGNS = "Algorithm 1", "random signs"
CONFIG = ControlConfig()
"""Algorithm 1 and decisions at random have one range and step size."""
Decision = Callable[[int, float, float], float]
"""After an epoch, counted from 1, with its D_w and D_b (NaN where training diverged): p of the next."""


def decision(strategy: str, p: float, epochs: int, seed: int) -> Decision:
    """The decisions about one network.

    strategy: ALGORITHM_1, RANDOM_SIGNS, or a `Schedule` over epochs. p: that of the first epoch.
    """
    if strategy == ALGORITHM_1:
        return _Algorithm1(p)
    if strategy == RANDOM_SIGNS:
        steps = walk(p, seed)
        return lambda epoch, d_w, d_b: next(steps)
    schedule = Schedule.parse(strategy)
    # The last epoch has the schedule's last value.
    return lambda epoch, d_w, d_b: schedule.value(epoch, total_steps=epochs - 1, steps_per_epoch=None)


class Decisions:
    """A `Move` of `stacked_training`: one `Decision` a network."""

    def __init__(self, decisions: Sequence[Decision]) -> None:
        self._decisions = decisions

    def __call__(self, epoch: int, d_w: Sequence[float], d_b: Sequence[float]) -> list[float]:
        return [decide(epoch, w, b) for decide, w, b in zip(self._decisions, d_w, d_b, strict=True)]


class _Algorithm1:
    def __init__(self, p: float) -> None:
        self._state = ControlState(p)

    def __call__(self, epoch: int, d_w: float, d_b: float) -> float:
        if math.isfinite(d_w) and math.isfinite(d_b):  # as `PControlCallback`, which decides nothing without numbers
            self._state = next_p(self._state, weight_norm=d_w, bias_norm=d_b, config=CONFIG)
        return self._state.p


def walk(p: float, seed: int) -> Iterator[float]:
    """Algorithm 1 with a coin in the place of gradients: p after each interval, of which the first only observes."""
    random = np.random.default_rng([seed, 1])
    yield p
    while True:
        step = CONFIG.p_step if random.random() < 0.5 else -CONFIG.p_step
        p = min(max(p + step, CONFIG.p_min), CONFIG.p_max)
        yield p


def random_signs(p: float, seed: int, *, decisions: int, interval: int) -> str:
    """`walk` as the text of a schedule, which moves p every `interval` optimizer steps."""
    after = enumerate(itertools.islice(walk(p, seed), decisions), 1)
    return ",".join([f"step:{p:g}", *(f"{value:.6g}@{interval * i}" for i, value in after)])
