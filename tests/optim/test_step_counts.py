"""Counts that are one tensor are those that each state would count for itself."""

from typing import Any

import pytest
import torch

from hf_pdyn.optim.step_counts import StepCounts


def states(*counts: float) -> list[dict[str, Any]]:
    return [{"step": torch.tensor(count)} for count in counts]


def test_counts_go_on_from_where_each_state_is() -> None:
    counts, of = StepCounts(), states(0, 5)
    assert counts.advance(of) == [1, 6]
    assert counts.advance(of) == [2, 7]
    assert [state["step"].item() for state in of] == [2, 7]
    assert all(state["step"].ndim == 0 and state["step"].dtype == torch.float32 for state in of)


def test_a_step_that_was_replaced_counts_from_its_new_value() -> None:
    counts, of = StepCounts(), states(0, 0)
    counts.advance(of)
    of[1]["step"] = torch.tensor(50.0)
    assert counts.advance(of) == [2, 51]


def test_a_step_that_was_written_counts_from_there() -> None:
    counts, of = StepCounts(), states(0, 0)
    counts.advance(of)
    of[0]["step"] += 7
    assert counts.advance(of) == [9, 2]


@pytest.mark.parametrize("others", [(3, 4), (3,), ()])
def test_other_states_have_counts_of_their_own(others: tuple[float, ...]) -> None:
    """As when parameters come and go: those that make no step stay where they are."""
    counts, of, other = StepCounts(), states(0, 0), states(*others)
    counts.advance(of)
    assert counts.advance(other) == [count + 1 for count in others]
    assert [state["step"].item() for state in of] == [1, 1]
    assert counts.advance(of) == [2, 2]
