import pytest

from hf_pdyn.policy.intervals import auto_interval, parse_interval, useful_decisions


@pytest.mark.parametrize(("value", "parsed"), [("epoch", "epoch"), ("auto", "auto"), ("50", 50), (50, 50)])
def test_words_and_numbers(value: int | str, parsed: int | str) -> None:
    assert parse_interval("every", value, "auto", "epoch") == parsed


@pytest.mark.parametrize("value", ["epochs", "", "0", 0, -1, 1.5, True, "1_0", "\u0663", "9" * 5000, None, [10]])
def test_anything_else_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="every.*epoch.*>= 1"):
        parse_interval("every", value, "epoch")


@pytest.mark.parametrize(("steps", "interval"), [(1, 10), (40, 10), (200, 10), (300, 15), (10_000, 500)])
def test_about_twenty_decisions_of_ten_steps_at_least(steps: int, interval: int) -> None:
    assert auto_interval(steps) == interval


@pytest.mark.parametrize(
    ("steps", "interval", "useful"), [(12, 3, 2), (13, 3, 3), (10, 10, 0), (20, 10, 0), (21, 10, 1), (8, 100, 0)]
)
def test_the_first_decision_and_one_at_the_end_move_no_step(steps: int, interval: int, useful: int) -> None:
    moved = list(range(2 * interval, steps, interval))
    assert useful_decisions(steps, interval, only_observes_first=True) == len(moved) == useful
