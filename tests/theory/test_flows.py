import math

import torch

from hf_pdyn.theory.flows import flatten, trajectory, unflatten


def end(*, steps: int, substeps: int = 1) -> torch.Tensor:
    """theta' = -(n+1) theta, from 1, during step n: theta is exp(-sum (n+1) h_n) at the end."""
    lrs = [0.8 / steps] * steps
    *_, last = trajectory(
        lambda n, theta: -(1 + n) * theta, torch.ones(1, dtype=torch.float64), lrs=lrs, substeps=substeps
    )
    return last * math.exp(sum((n + 1) * h for n, h in enumerate(lrs))) - 1


def test_solutions_are_of_fourth_order() -> None:
    coarse, fine = end(steps=1), end(steps=1, substeps=2)
    assert 14 < coarse / fine < 24  # 2^4 as h -> 0
    assert abs(end(steps=4, substeps=20)) < 1e-7


def test_states_begin_with_the_start_and_follow_the_field_of_their_step() -> None:
    states = list(trajectory(lambda n, theta: torch.full_like(theta, float(n)), torch.zeros(2), lrs=[1.0, 0.5, 2.0]))
    torch.testing.assert_close(torch.stack(states)[:, 0], torch.tensor([0.0, 0.0, 0.5, 4.5]))


def test_structures_come_back() -> None:
    params = (
        {"a": torch.arange(6.0).reshape(2, 3).requires_grad_(), "b": torch.tensor(6.0)},
        (torch.arange(7.0, 9.0),),
    )
    x = flatten(params)
    assert torch.equal(x, torch.arange(9.0)) and not x.requires_grad
    first, (last,) = unflatten(x, params)
    assert torch.equal(first["a"], params[0]["a"]) and first["b"].shape == () and torch.equal(last, params[1][0])
