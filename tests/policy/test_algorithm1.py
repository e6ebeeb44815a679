import dataclasses
import json
import math
from typing import NamedTuple

import pytest

from hf_pdyn.policy.algorithm1 import BRANCHES, Branch, ControlConfig, ControlState, next_p

CONFIG = ControlConfig(p_min=0.2, p_max=0.6, p_step=0.05, threshold=1.5)


class Case(NamedTuple):
    """One interval after an interval with D_w = `weight[0]`, D_b = `bias[0]` and minimum `bias_min`."""

    weight: tuple[float, float]
    bias: tuple[float, float]
    bias_min: float
    p: float
    expected_p: float
    branch: Branch


# Worked out by hand from the lines of Algorithm 1.
CASES = {
    "rebound lowers p": Case((1, 2), (1.2, 1.6), 1.0, 0.4, 0.35, "rebound"),
    "rebound outranks falling bias": Case((1, 0.5), (3, 2), 1.0, 0.4, 0.35, "rebound"),
    "exactly tau_b times the minimum is no rebound": Case((1, 2), (1.2, 1.5), 1.0, 0.4, 0.4, "hold"),
    "bias up, weight down": Case((2, 1), (1.0, 1.2), 1.0, 0.4, 0.35, "bias_up"),
    "bias up, weight level": Case((1, 1), (1.0, 1.2), 1.0, 0.4, 0.35, "bias_up"),
    "bias down, weight down": Case((2, 1), (1.4, 1.2), 1.0, 0.4, 0.45, "bias_down"),
    "bias down, weight level": Case((1, 1), (1.4, 1.2), 1.0, 0.4, 0.45, "bias_down"),
    "both up": Case((1, 2), (1.0, 1.2), 1.0, 0.4, 0.4, "hold"),
    "bias down, weight up": Case((1, 2), (1.4, 1.2), 1.0, 0.4, 0.4, "hold"),
    "bias level, weight down": Case((2, 1), (1.0, 1.0), 1.0, 0.4, 0.4, "hold"),
    "both level": Case((1, 1), (1.0, 1.0), 1.0, 0.4, 0.4, "hold"),
    "clipped at p_min": Case((2, 1), (1.0, 1.2), 1.0, 0.22, 0.2, "bias_up"),
    "clipped at p_max": Case((2, 1), (1.4, 1.2), 1.0, 0.58, 0.6, "bias_down"),
    # With the minimum updated after the comparison, 0.9 > 1.5 * inf could never fire and 2.0 below would be a rebound.
    "the minimum is updated first": Case((2, 1), (10.0, 0.9), 1.0, 0.4, 0.45, "bias_down"),
    "from nothing": Case((0, 0), (0.0, 0.0), 0.0, 0.4, 0.4, "hold"),
    "bias appears": Case((1, 1), (0.0, 0.1), 0.0, 0.4, 0.35, "rebound"),
}


@pytest.mark.parametrize("name", CASES)
def test_every_branch(name: str) -> None:
    case = CASES[name]
    before = ControlState(
        p=case.p, interval=3, bias_norm_min=case.bias_min, weight_norm=case.weight[0], bias_norm=case.bias[0]
    )
    after = next_p(before, weight_norm=case.weight[1], bias_norm=case.bias[1], config=CONFIG)
    assert after.p == pytest.approx(case.expected_p)
    assert after.branch == case.branch
    assert after.interval == 4
    assert after.bias_norm_min == min(case.bias_min, case.bias[1])
    assert (after.weight_norm, after.bias_norm) == (case.weight[1], case.bias[1])


def test_every_branch_is_covered() -> None:
    assert {case.branch for case in CASES.values()} | {"start", "first"} == set(BRANCHES)


def test_first_interval_keeps_p_and_sets_the_minimum() -> None:
    after = next_p(ControlState(p=0.5), weight_norm=3.0, bias_norm=2.0, config=CONFIG)
    assert after == ControlState(0.5, 1, bias_norm_min=2.0, weight_norm=3.0, bias_norm=2.0, branch="first")


def test_first_interval_does_not_clip() -> None:
    """Line 7 sets p_2 to p_1 as it is."""
    assert next_p(ControlState(p=0.9), weight_norm=1, bias_norm=1, config=CONFIG).p == 0.9


def test_a_single_new_minimum_is_compared_with_itself() -> None:
    """Updated first, D_b(e) = D_b_min, and no threshold above 1 calls that a rebound."""
    state = ControlState(p=0.4, interval=1, bias_norm_min=5.0, weight_norm=1.0, bias_norm=5.0)
    assert next_p(state, weight_norm=1.0, bias_norm=0.1, config=CONFIG).branch == "bias_down"


def test_changes_are_relative() -> None:
    state = ControlState(p=0.4, interval=1, bias_norm_min=1.0, weight_norm=2.0, bias_norm=4.0)
    after = next_p(state, weight_norm=3.0, bias_norm=1.0, config=CONFIG)
    assert after.weight_change == pytest.approx(0.5)
    assert after.bias_change == pytest.approx(-0.75)


def test_state_survives_json_bit_for_bit() -> None:
    state = ControlState(p=0.5)
    for weight, bias in [(1 / 3, 0.1), (0.3, 0.07), (1e-30, 1e-300)]:
        state = next_p(state, weight_norm=weight, bias_norm=bias, config=CONFIG)
        assert ControlState.from_dict(json.loads(json.dumps(state.to_dict()))) == state
    assert json.loads(json.dumps(ControlState(p=0.5).to_dict(), allow_nan=False))["bias_norm_min"] is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_observations_must_be_norms(bad: float) -> None:
    with pytest.raises(ValueError, match=f"bias_norm.*>= 0.*{bad}"):
        next_p(ControlState(p=0.5), weight_norm=1.0, bias_norm=bad, config=CONFIG)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"p_min": 0.7}, "p_min must not exceed p_max, got p_min=0.7 and p_max=0.6"),
        ({"p_step": 0.0}, r"p_step \(alpha_p\) must be positive, got 0.0"),
        ({"threshold": 1.0}, r"\(tau_b\) must be greater than 1, got 1.0"),
        ({"p_max": math.nan}, "p_max must be a finite number, got nan"),
    ],
)
def test_bad_constants(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_the_start_must_lie_in_the_range() -> None:
    CONFIG.check_start(0.2)
    with pytest.raises(ValueError, match=r"\[p_min, p_max\] = \[0.2, 0.6\], got p=0.7"):
        CONFIG.check_start(0.7)
