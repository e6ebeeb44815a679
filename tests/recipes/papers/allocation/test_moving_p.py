"""How p moves in networks that are trained together, and learning rates that match its update sizes."""

import itertools
import math
from typing import Any

import numpy as np
import pytest

from hf_pdyn.policy.algorithm1 import ControlState, next_p
from hf_pdyn.policy.schedules import Schedule
from papers.allocation._exponents import ALGORITHM_1, CONFIG, RANDOM_SIGNS, Decisions, decision, random_signs, walk
from papers.allocation._matching import match_update_sizes, update_sizes


def test_a_schedule_ends_with_its_last_value() -> None:
    falling = decision("linear:0.45..0.35", 0.45, epochs=11, seed=0)
    assert [falling(epoch, 1.0, 1.0) for epoch in range(1, 11)] == pytest.approx(np.linspace(0.44, 0.35, 10).tolist())
    assert decision("0.6", 0.6, epochs=11, seed=0)(5, 1.0, 1.0) == 0.6


def test_algorithm_1_is_the_packages() -> None:
    norms = [(1.0, 1.0), (0.9, 0.8), (0.8, 0.9), (math.nan, 0.1), (0.7, 0.5)]
    steered = decision(ALGORITHM_1, 0.5, epochs=6, seed=0)
    found = [steered(epoch, *of) for epoch, of in enumerate(norms, 1)]
    state, wanted = ControlState(0.5), []
    for weight_norm, bias_norm in norms:
        if math.isfinite(weight_norm):
            state = next_p(state, weight_norm=weight_norm, bias_norm=bias_norm, config=CONFIG)
        wanted.append(state.p)
    assert found == wanted and len(set(found)) > 1


def test_random_signs_are_steps_of_algorithm_1_within_its_range() -> None:
    random = decision(RANDOM_SIGNS, 0.5, epochs=200, seed=3)
    found = [random(epoch, 1.0, 1.0) for epoch in range(1, 200)]
    assert found[0] == 0.5  # the first epoch only observes
    steps = np.abs(np.diff(found))
    assert np.all(np.isclose(steps, CONFIG.p_step) | (np.array(found[1:]) == CONFIG.p_max) | (np.isclose(steps, 0)))
    assert CONFIG.p_min <= min(found) and max(found) <= CONFIG.p_max and min(found) < 0.5 < max(found)
    other = decision(RANDOM_SIGNS, 0.5, epochs=200, seed=4)
    assert found != [other(epoch, 1.0, 1.0) for epoch in range(1, 200)]


def test_random_signs_of_a_recipe_are_the_same_walk() -> None:
    schedule = Schedule.parse(random_signs(0.5, 7, decisions=4, interval=25))
    found = [schedule.value(step, total_steps=125, steps_per_epoch=None) for step in range(0, 125, 25)]
    assert found == pytest.approx([0.5, *itertools.islice(walk(0.5, 7), 4)])
    assert schedule.value(49, total_steps=125, steps_per_epoch=None) == found[1]


def test_every_network_has_a_decision_of_its_own() -> None:
    move = Decisions([decision("linear:0.6..0.5", 0.6, 3, 0), decision(ALGORITHM_1, 0.5, 3, 0)])
    assert move(1, [1.0, 1.0], [1.0, 1.0]) == [pytest.approx(0.55), 0.5]
    assert move(2, [1.0, 0.9], [1.0, 0.8]) == [0.5, pytest.approx(0.52)]


def sized(sizes: Any) -> dict[str, Any]:
    return {"curves": {"update_w": [None if np.isnan(size) else float(size) for size in sizes], "update_b": [0.0] * 2}}


def test_update_sizes_are_matched_in_rounds() -> None:
    """Sizes that go as the square root of a factor: each round halves the log of what is missing."""
    wanted, usual = np.array([[4.0, 4.0], [1.0, 9.0]]), np.ones((2, 2))
    found = match_update_sizes(lambda factors: [sized(of**0.5) for of in factors], wanted, usual, rounds=12)
    for one, size in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one["lr_factors"], size**2, rtol=2e-3)
        np.testing.assert_allclose(update_sizes(one), size, rtol=1e-3)
        assert one["matched_within"] < 1e-3


def test_a_round_that_diverged_replaces_no_good_one() -> None:
    """Nor one that came less close; and after it the factors are smaller than those that it had."""
    sizes = [[3.0], [np.nan], [8.0], [3.9]]
    given: list[float] = []

    def train(factors: np.ndarray) -> list[dict[str, Any]]:
        given.append(float(factors[0, 0]))
        size = sizes[len(given) - 1][0]
        return [sized([size, size])]

    wanted = np.full((1, 2), 4.0)
    (found,) = match_update_sizes(train, wanted, np.ones((1, 2)), rounds=3)
    assert found["matched_within"] == pytest.approx(0.25) and found["lr_factors"] == pytest.approx([4.0, 4.0])
    assert given[0] < given[2] < given[1]
    given.clear()
    (found,) = match_update_sizes(train, wanted, np.ones((1, 2)), rounds=4)
    assert found["matched_within"] == pytest.approx(0.025)


def test_without_a_round_in_numbers_it_says_so() -> None:
    (found,) = match_update_sizes(lambda _: [sized([np.nan, 1.0])], np.ones((1, 2)), np.ones((1, 2)), rounds=3)
    assert math.isnan(found["matched_within"]) and found["lr_factors"] == pytest.approx([0.25, 0.25])
