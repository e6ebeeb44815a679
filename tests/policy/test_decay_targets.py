"""Targets as they are written and read back, and when they are reached."""

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_pdyn.measure.attention_lora import ATTENTION, ATTENTION_HEADS, LORA
from hf_pdyn.measure.spectra import QUANTITIES as SPECTRAL
from hf_pdyn.policy.decay_targets import PRODUCTS, RATIO, Approach, DecayTarget, moment_or_target
from hf_pdyn.policy.schedules import Moment

TARGETS = st.one_of(
    st.floats(max_value=-1e-300, allow_infinity=False).map(lambda value: DecayTarget("a_t", value)),
    st.builds(
        lambda product, value: DecayTarget(f"{product}/{RATIO}", value),
        st.sampled_from(PRODUCTS),
        st.floats(min_value=1.0000001, allow_infinity=False),
    ),
)


def test_the_quantities_are_metrics() -> None:
    """Their names stand in a room that knows neither torch nor what measures them."""
    assert PRODUCTS == (ATTENTION, ATTENTION_HEADS, LORA)
    assert RATIO in SPECTRAL


@given(TARGETS)
def test_a_target_is_read_back(target: DecayTarget) -> None:
    assert moment_or_target(str(target)) == moment_or_target(target) == target
    assert not set(str(target)) & set(" <>|&;$*?()`\"'\\!#~")  # no shell touches it


@given(st.text(max_size=30) | st.from_regex(r"(a_t|lora/nuc_over_fro|epoch|[0-9.]*)[:=]?-?[0-9.e]*", fullmatch=True))
def test_any_text_is_a_moment_a_target_or_a_valueerror(text: str) -> None:
    try:
        found = moment_or_target(text)
    except ValueError:
        return
    assert moment_or_target(str(found)) == found


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a_t=-0.05", DecayTarget("a_t", -0.05)),
        (" lora/nuc_over_fro=2.5 ", DecayTarget("lora/nuc_over_fro", 2.5)),
        ("attention_heads/nuc_over_fro=3", DecayTarget("attention_heads/nuc_over_fro", 3.0)),
        ("0.5", Moment(0.5, "fraction")),
        (200, Moment(200, "step")),
        ("epoch:2", Moment(2, "epoch")),
        (Moment(3, "step"), Moment(3, "step")),
    ],
)
def test_what_is_written(value: Any, expected: Moment | DecayTarget) -> None:
    assert moment_or_target(value) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a_t:-0.05", "'a_t:-0.05' is neither.*as in a_t=-0.05"),
        ("lora/nuc_over_fro<2.5", "QUANTITY=NUMBER, as in a_t=-0.05 or lora/nuc_over_fro=2.5"),
        ("soon", "moment as 0.5, 200 or epoch:2"),
        ("nuc_over_fro=2.5", "'nuc_over_fro'.*quantities.*Did you mean 'lora/nuc_over_fro'"),
        ("at=-1", "'at'.*Did you mean 'a_t'"),
        ("a_t=", "'' is no finite number"),
        ("a_t=nan", "'nan' is no finite number"),
        ("a_t=0", "must be negative, got 0. Write a_t=-0.05"),
        ("a_t=0.05", "must be negative, got 0.05"),
        ("lora/nuc_over_fro=1", "is 1 at rank one.*got lora/nuc_over_fro=1. Write a value above 1"),
        ("lora/nuc_over_fro=-2", "Write a value above 1"),
        ("0.5x", "'0.5x' is no moment of training"),
        ("", "'' is no moment of training"),
    ],
)
def test_nonsense_is_an_error_with_its_cure(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        moment_or_target(text)


def approached(target: DecayTarget, values: list[float]) -> Approach:
    approach = Approach.start(target)
    for step, value in enumerate(values, start=1):
        approach = approach.observe(target, value, step)
    return approach


def test_a_t_starts_above_its_target() -> None:
    target = DecayTarget("a_t", -1.0)
    assert approached(target, [-0.4, -0.8]) == Approach(above=True, last=-0.8)
    assert approached(target, [-0.4, -1.2, -1.6]) == Approach(above=True, last=-1.2, reached_at=2)
    assert approached(target, [-2.0]).reached_at == 1


def test_rounding_costs_no_step() -> None:
    a_t, values = 0.0, []
    for _ in range(12):
        a_t -= 0.1
        values.append(a_t)
    assert values[9] > -1.0
    assert approached(DecayTarget("a_t", -1.0), values).reached_at == 10


def test_a_ratio_must_have_been_above() -> None:
    """That of LoRA starts low."""
    target = DecayTarget("lora/nuc_over_fro", 2.0)
    assert approached(target, [1.2, 1.8]) == Approach(above=False, last=1.8)
    assert approached(target, [1.2, 2.4, 2.2, 2.0, 1.9]) == Approach(above=True, last=2.0, reached_at=4)


@given(TARGETS, st.integers(0, 2**32), st.integers(0, 20))
def test_an_approach_goes_on_where_it_was_written_down(target: DecayTarget, seed: int, written: int) -> None:
    generator = random.Random(seed)
    before, after = Approach.start(target), Approach.start(target)
    for step in range(20):
        if step == written:
            after = Approach.from_dict(after.to_dict(), target)
        value = target.value * generator.uniform(0.5, 1.5)
        if math.isfinite(value):
            before, after = (approach.observe(target, value, step) for approach in (before, after))
    assert before == after


@pytest.mark.parametrize(
    "changed",
    [
        {"above": 1},
        {"above": False},
        {"last": None},
        {"last": -0.5},
        {"last": math.nan},
        {"last": "x"},
        {"reached_at": None},
        {"reached_at": -1},
        {"reached_at": 2.0},
        {"more": 1},
    ],
)
def test_what_no_approach_can_be_is_refused(changed: dict[str, Any]) -> None:
    target, values = DecayTarget("a_t", -1.0), {"above": True, "last": -1.5, "reached_at": 3}
    assert Approach.from_dict(values, target).to_dict() == values
    with pytest.raises(ValueError, match="way to a_t=-1 cannot be|keys above, last, reached_at"):
        Approach.from_dict(values | changed, target)
    for other in (None, [], "x"):
        with pytest.raises(ValueError, match="must be a dict"):
            Approach.from_dict(other, target)
