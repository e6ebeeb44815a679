"""Sums over sets of members, from a table and along trees."""

import math
from unittest import mock

import pytest
import torch
from torch import Tensor

from hf_pdyn.tensors import membership
from hf_pdyn.tensors.membership import Membership

MEMBERS, SETS = 700, 41
GENERATOR = torch.Generator().manual_seed(0)
# All are in set 0, some in a set of their own, and the last set is empty.
OWN = [[0, *torch.randperm(SETS - 2, generator=GENERATOR)[: i % 3].add(1).tolist()] for i in range(MEMBERS)]
SHARES = [0.5 if i % 5 == 0 else 1.0 for i in range(MEMBERS)]


def expected(values: Tensor) -> Tensor:
    sums = torch.zeros(SETS, values.shape[1], dtype=torch.float64)
    for row, own, share in zip(values, OWN, SHARES, strict=True):
        for number in own:
            sums[number] += share * row
    return sums.T


@pytest.fixture(params=["table", "trees"])
def sets(request: pytest.FixtureRequest) -> Membership:
    with mock.patch.object(membership, "_DENSE", 0 if request.param == "trees" else 10**9):
        found = Membership(OWN, SHARES, SETS)
    assert bool(found._levels) == (request.param == "trees")
    return found


@pytest.mark.parametrize("columns", [1, 7])
def test_sums_are_those_of_the_members(sets: Membership, columns: int) -> None:
    values = torch.randn(MEMBERS, columns, dtype=torch.float64, generator=GENERATOR)
    assert torch.allclose(sets.sums(values), expected(values), rtol=1e-12, atol=1e-12)
    assert torch.equal(sets.sums(values), sets.sums(values))
    assert (sets.sums(values)[:, -1] == 0).all()
    assert torch.allclose(sets.column_sums(values[:, 0]), expected(values)[0], rtol=1e-12, atol=1e-12)


def test_a_value_that_is_not_finite_spoils_its_own_sets_alone(sets: Membership) -> None:
    values = torch.ones(MEMBERS, 2, dtype=torch.float64)
    values[4, 1] = math.inf
    sums = sets.finite_sums(values)
    assert torch.isfinite(sums[0]).all()
    assert sums[1].isnan().nonzero().flatten().tolist() == sorted(OWN[4])


def test_it_does_not_grow_with_the_square_of_members() -> None:
    count = 20_000
    found = Membership([[0, 1 + i] for i in range(count)], [1.0] * count, count + 1)
    kept = sum(level.numel() for level in found._levels)
    assert found._table is None and kept < 100 * count
