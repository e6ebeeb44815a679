"""`power_sums` against float64."""

import pytest
import torch

from hf_pdyn.tensors.power_sums import part_size, power_sums

GRID = {"first": -0.8, "step": 0.05, "count": 57}
EXPONENTS = -0.8 + 0.05 * torch.arange(57, dtype=torch.float64)
CLOSE = 1e-5
"""Float32 powers, products of up to 36 rounded factors: 36 * 6e-8 at worst, and sums of parts."""


def drawn(count: int, level: float, spread: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.exp(level + spread * torch.randn(count, generator=generator))
    return torch.rand(count, generator=generator), x


def expected(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    w, x = (torch.cat(values).double() for values in zip(*pairs, strict=True))
    return torch.stack([(w * x ** (1 - s)).sum() for s in EXPONENTS])


@pytest.mark.parametrize("level", [-60.0, -20.0, 0.0, 40.0])
@pytest.mark.parametrize("spread", [0.0, 1.0, 4.0])
def test_sums_of_one_pair(level: float, spread: float) -> None:
    pairs = [drawn(5000, level, spread)]
    reference = expected(pairs)
    torch.testing.assert_close(power_sums(pairs, **GRID), reference, rtol=CLOSE, atol=0)


def test_pairs_of_any_size_are_added_up() -> None:
    most = part_size(torch.device("cpu"))
    pairs = [drawn(size, -10.0 - i, 1.0, seed=i) for i, size in enumerate((1, most, 3, most - 2, most // 2, 7))]
    reference = expected(pairs)
    torch.testing.assert_close(power_sums(iter(pairs), **GRID), reference, rtol=CLOSE, atol=0)


def test_a_part_of_nothing_stays_nothing() -> None:
    found = power_sums([(torch.zeros(4), torch.full((4,), 1e-16))], **GRID)
    assert (found == 0).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_shows(bad: float) -> None:
    w, x = drawn(10, 0.0, 1.0)
    w[3] = bad
    assert not power_sums([(w, x)], **GRID).isfinite().any()
