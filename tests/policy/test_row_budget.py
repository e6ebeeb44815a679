"""Which records of a run have rows."""

import pytest

from hf_pdyn.policy.row_budget import MOST_VALUES, plan_rows


@pytest.mark.parametrize("values", [1, 800, 33_000, MOST_VALUES])
@pytest.mark.parametrize(("interval", "total_steps"), [(1, 100), (10, 100_000), (10, 1_000_003), (500, 40)])
def test_no_run_has_many_more_numbers_than_the_budget(values: int, interval: int, total_steps: int) -> None:
    plan = plan_rows(values, interval=interval, total_steps=total_steps)
    records = [*range(interval, total_steps + 1, interval), total_steps]
    taken = [step for step in dict.fromkeys(records) if plan.takes(step)]
    assert taken[-1] == total_steps
    assert len(taken) * values <= MOST_VALUES + 2 * values
    if plan.every > 1:  # nor far fewer: half at the least, but for rounding
        assert (len(taken) + 2) * values >= MOST_VALUES / 2
        assert plan.thinned == f"one record in {plan.every}, every {plan.every * interval} steps"


def test_a_small_run_has_all_its_records() -> None:
    plan = plan_rows(800, interval=10, total_steps=1000)
    assert plan.thinned is None and plan.takes(1) and plan.takes(10)
