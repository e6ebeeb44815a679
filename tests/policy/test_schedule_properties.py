"""Any text is a moment, a schedule or one clear error, and what is printed parses back."""

import math

from hypothesis import example, given, settings
from hypothesis import strategies as st

from hf_pdyn.policy.schedules import Moment, Schedule
from tests.properties import result_or_refusal

FEW = settings(max_examples=200)

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
MOMENTS = st.one_of(
    st.builds(Moment, st.integers(0, 2**53).map(float), st.just("step")),
    st.builds(Moment, st.floats(0, 1), st.just("fraction")),
    st.builds(Moment, st.floats(0, 2.0**53), st.just("epoch")),
)
SCHEDULES = st.one_of(
    st.builds(Schedule, st.just("constant"), st.tuples(NUMBERS)),
    st.builds(
        Schedule,
        st.sampled_from(["linear", "cosine"]),
        st.tuples(NUMBERS, NUMBERS),
        st.one_of(st.just(()), st.tuples(MOMENTS, MOMENTS)),
    ),
    st.lists(st.tuples(NUMBERS, MOMENTS), max_size=4).flatmap(
        lambda later: st.builds(
            Schedule,
            st.just("step"),
            NUMBERS.map(lambda first: (first, *(value for value, _ in later))),
            st.just(tuple(moment for _, moment in later)),
        )
    ),
)
# Text near the grammar: characters and pieces that it is made of.
PIECES = [
    "linear:",
    "cosine:",
    "step:",
    "epoch:",
    "..",
    "@",
    ",",
    "%",
    ".",
    "-",
    "e",
    "_",
    "0.5",
    "1e400",
    "9" * 400,
    " ",
]
TEXTS = st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=8).map("".join))


@FEW
@given(MOMENTS)
def test_moments_parse_back(moment: Moment) -> None:
    assert Moment.parse(str(moment)) == moment


@FEW
@given(SCHEDULES)
def test_schedules_parse_back(schedule: Schedule) -> None:
    assert Schedule.parse(str(schedule)) == schedule


@FEW
@given(TEXTS)
@example("9" * 5000)
@example("epoch:1_0")
def test_any_text_is_a_moment_or_one_error(text: str) -> None:
    moment, refusal = result_or_refusal(Moment.parse, text)
    if refusal is not None:
        assert "moment of training" in refusal or "fraction of training" in refusal
        assert len(refusal) < 400
        return
    assert Moment.parse(str(moment)) == moment
    assert isinstance(moment.resolve(total_steps=1000, steps_per_epoch=100), int)


@FEW
@given(TEXTS)
def test_any_text_is_a_schedule_or_one_error(text: str) -> None:
    schedule, refusal = result_or_refusal(Schedule.parse, text)
    if refusal is None:
        assert Schedule.parse(str(schedule)) == schedule
    else:
        assert len(refusal) < 400


@FEW
@given(st.sampled_from(["linear", "cosine"]), NUMBERS, NUMBERS, st.integers(0, 100))
def test_a_schedule_stays_between_its_ends(kind: str, first: float, last: float, step: int) -> None:
    value = Schedule(kind, (first, last)).value(step, total_steps=100, steps_per_epoch=None)
    slack = 1e-12 * max(abs(first), abs(last))
    assert math.isfinite(value)
    assert min(first, last) - slack <= value <= max(first, last) + slack
