"""Targets, and the p that reaches them, on curves of made-up moments."""

import math
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from hf_pdyn.policy.allocation_curve import P_MAX, P_MIN, PowerMoments
from hf_pdyn.policy.targets import Part, Target, solve, value_at
from tests.policy.test_allocation_curve import BIAS, WEIGHT, direction, drawn, moments

PARTS = [Part("weight", moments(*WEIGHT)), Part("bias_like", moments(*BIAS))]
FREE: dict[str, Any] = {"p": 0.4, "low": P_MIN, "high": P_MAX}


@pytest.mark.parametrize("p", [-0.2, 0.1, 0.37, 0.5, 0.8])
def test_quantities_are_those_of_directions(p: float) -> None:
    weight, bias_like = (np.linalg.norm(direction(group, p)) for group in (WEIGHT, BIAS))
    adam = math.hypot(*(np.linalg.norm(direction(group, 0.5)) for group in (WEIGHT, BIAS)))
    assert value_at("update_ratio", PARTS, p) == pytest.approx(weight / bias_like, rel=1e-5)
    assert value_at("bias_share", PARTS, p) == pytest.approx(bias_like**2 / (weight**2 + bias_like**2), rel=1e-5)
    assert value_at("lr_factor", PARTS, p) == pytest.approx(adam / math.hypot(weight, bias_like), rel=1e-5)


@pytest.mark.parametrize("quantity", ["update_ratio", "bias_share", "lr_factor"])
@pytest.mark.parametrize("p", [-0.2, 0.1, 0.37, 0.8])
def test_the_p_of_a_reachable_target(quantity: Any, p: float) -> None:
    wanted = value_at(quantity, PARTS, p)
    found = solve(quantity, wanted, PARTS, **{**FREE, "p": p + 0.01})
    assert value_at(quantity, PARTS, found) == pytest.approx(wanted, rel=1e-9)
    assert found == pytest.approx(p, abs=1e-6)


@pytest.mark.parametrize(("wanted", "expected"), [(1e9, 0.45), (1e-9, 0.35)])
def test_a_target_out_of_reach_ends_at_the_limit(wanted: float, expected: float) -> None:
    rising = value_at("update_ratio", PARTS, 0.45) > value_at("update_ratio", PARTS, 0.35)
    found = solve("update_ratio", wanted, PARTS, p=0.4, low=0.35, high=0.45)
    assert found == pytest.approx(expected if rising else 0.8 - expected)


def test_of_two_the_nearest() -> None:
    """A mixture whose ratio falls and rises again: both sides reach the same value."""
    weight = Part("weight", moments(np.array([1.0, 1.0]), np.array([1e-4, 1e4])))
    bias_like = Part("bias_like", moments(np.array([1.0]), np.array([1.0])))
    wanted = value_at("update_ratio", [weight, bias_like], 0.1)
    assert wanted == pytest.approx(value_at("update_ratio", [weight, bias_like], -0.1), rel=1e-9)
    for p, expected in ((0.05, 0.1), (-0.05, -0.1), (1.0, 0.1)):
        found = solve("update_ratio", wanted, [weight, bias_like], p=p, low=P_MIN, high=P_MAX)
        assert found == pytest.approx(expected, abs=1e-6)


def test_a_flat_quantity_leaves_p_where_it_is() -> None:
    flat = moments(np.array([1.0]), np.array([1.0]))
    found = solve("update_ratio", 7.0, [Part("weight", flat), Part("bias_like", flat)], p=0.4, low=0.3, high=0.5)
    assert found == pytest.approx(0.4, abs=0.2 / 64)


def test_one_label_alone_moves() -> None:
    """The others keep their p: of the bias-like update only the norms' part answers."""
    weight, norm, bias = moments(*WEIGHT), moments(*BIAS), moments(*drawn(3, -10.0))
    parts = [Part("weight", weight, 0.5), Part("bias_like", bias, 0.5), Part("bias_like", norm)]
    wanted = 0.9 * value_at("update_ratio", parts, 0.5)
    found = solve("update_ratio", wanted, parts, p=0.5, low=P_MIN, high=P_MAX)
    assert value_at("update_ratio", parts, found) == pytest.approx(wanted, rel=1e-9)
    squares = math.exp(bias.log_at(1.0)) + math.exp(norm.log_at(2 * found))
    assert math.exp(weight.log_at(1.0) / 2) / squares**0.5 == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("quantity", ["update_ratio", "bias_share"])
def test_a_missing_pathway_is_an_error(quantity: Any) -> None:
    with pytest.raises(ValueError, match="weights and bias-like"):
        solve(quantity, 0.5, PARTS[:1], **FREE)


def test_a_learning_rate_factor_needs_one_pathway_only() -> None:
    assert solve("lr_factor", 1.0, PARTS[:1], **FREE) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("update_ratio=6", Target("update_ratio", 6.0)),
        (" bias_share=0.1 ", Target("bias_share", 0.1)),
        ("lr_factor=hold", Target("lr_factor", None)),
    ],
)
def test_targets_as_users_write_them(text: str, target: Target) -> None:
    assert Target.parse(text) == target
    assert Target.parse(str(target)) == target


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("6", "QUANTITY=NUMBER"),
        ("ratio=6", "update_ratio, bias_share, lr_factor.*'ratio'"),
        ("update_ratio=", "number or hold"),
        ("update_ratio=-1", "> 0.*-1"),
        ("update_ratio=0", "> 0.*0"),
        ("bias_share=1", "between 0 and 1.*1"),
        ("lr_factor=nan", "number or hold.*'nan'"),
    ],
)
def test_what_is_no_target(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Target.parse(text)


@hypothesis.given(text=st.text(max_size=30) | st.from_regex(r"(update_ratio|bias_share|lr_factor)=\S{0,9}"))
def test_any_text_is_a_target_or_one_error(text: str) -> None:
    try:
        target = Target.parse(text)
    except ValueError:
        return
    assert Target.parse(str(target)) == target


@hypothesis.given(
    wanted=st.floats(1e-6, 1e6), p=st.floats(0.25, 0.6), step=st.floats(0.001, 0.2), seed=st.integers(0, 100)
)
@hypothesis.settings(max_examples=30)
def test_a_solution_stays_within_its_limits(wanted: float, p: float, step: float, seed: int) -> None:
    parts = [Part("weight", moments(*drawn(seed, -15.0))), Part("bias_like", moments(*drawn(seed + 1, -9.0, 1.0, 40)))]
    low, high = p - step, p + step
    found = solve("update_ratio", wanted, parts, p=p, low=low, high=high)
    assert low - 1e-12 <= found <= high + 1e-12
    nearest = min(abs(math.log(value_at("update_ratio", parts, at) / wanted)) for at in np.linspace(low, high, 65))
    assert abs(math.log(value_at("update_ratio", parts, found) / wanted)) <= nearest + 1e-6


def test_moments_of_a_part_are_whole() -> None:
    assert isinstance(PARTS[0].moments, PowerMoments)
