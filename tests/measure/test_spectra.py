"""Spectra of products from thin factors, against dense singular values in float64."""

import math

import pytest
import torch
from torch import Tensor

from hf_pdyn.measure.spectra import QUANTITIES, Spectrum, singular_values, summary

# float32 factors: a few roundings of the largest value in each of at most 64.
TOLERANCE = 2e-6

SHAPES = {
    "thin": ((48, 8), (40, 8)),
    "square": ((24, 24), (24, 24)),
    "wide": ((12, 40), (16, 40)),
    "thin and wide": ((64, 16), (8, 16)),
    "rank one": ((30, 1), (20, 1)),
    "a batch": ((6, 64, 8), (6, 64, 8)),
    "broadcast, as grouped queries": ((2, 1, 32, 4), (2, 3, 32, 4)),
}


def factors(name: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES[name])
    return left, right


def dense(left: Tensor, right: Tensor) -> Tensor:
    values = torch.linalg.svdvals(left.double() @ right.double().mT)
    return values[..., : min(left.shape[-2], right.shape[-2], left.shape[-1])]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SHAPES)
def test_singular_values_are_those_of_the_dense_product(name: str, dtype: torch.dtype) -> None:
    left, right = factors(name, dtype)
    expected = dense(left, right)
    found = singular_values(left, right)
    assert found.shape == expected.shape
    largest = expected.amax(-1, keepdim=True)
    tolerance = 1e-13 if dtype == torch.float64 else TOLERANCE
    assert ((found.double() - expected).abs() / largest).max() < tolerance


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_quantities_are_those_of_the_dense_product(scale: float) -> None:
    left, right = factors("thin")
    left = left * torch.logspace(0, -3, 8)  # neither one value nor all alike
    spectrum = Spectrum.of(singular_values(scale * left, right))
    assert spectrum is not None
    values = dense(scale * left, right)
    shares = values / values.sum()
    product = (scale * left).double() @ right.double().mT
    expected = {
        "nuclear": torch.linalg.matrix_norm(product, "nuc").item(),
        "frobenius": torch.linalg.matrix_norm(product, "fro").item(),
        "effective_rank": math.exp(-sum(share * math.log(share) for share in shares.tolist())),
        "stable_rank": (product.norm() ** 2 / torch.linalg.matrix_norm(product, 2) ** 2).item(),
    }
    expected["nuc_over_fro"] = expected["nuclear"] / expected["frobenius"]
    assert {name: getattr(spectrum, name) for name in QUANTITIES} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_equal_singular_values_reach_the_largest_of_each(rank: int) -> None:
    left = torch.linalg.qr(torch.randn(20, rank, generator=torch.Generator().manual_seed(1))).Q
    spectrum = Spectrum.of(singular_values(5 * left, left))
    assert spectrum is not None
    assert spectrum.nuc_over_fro == pytest.approx(math.sqrt(rank), rel=1e-6)
    assert spectrum.effective_rank == pytest.approx(rank, rel=1e-6)
    assert spectrum.stable_rank == pytest.approx(rank, rel=1e-6)


def test_a_deficient_product_has_the_ranks_of_what_is_there() -> None:
    """Zeros become roundings of the largest value, and the entropy of 60 of these stays small."""
    generator = torch.Generator().manual_seed(2)
    thin = torch.randn(64, 4, generator=generator)
    square = thin @ torch.randn(4, 64, generator=generator)
    found = Spectrum.of(singular_values(square, torch.eye(64)))
    expected = Spectrum.of(torch.linalg.svdvals(square.double())[:4])
    assert found is not None and expected is not None
    for name in QUANTITIES:
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-4)


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_zero_and_what_is_not_finite_have_no_spectrum(value: float) -> None:
    left, right = factors("thin")
    assert Spectrum.of(singular_values(torch.full_like(left, value), right)) is None
    assert Spectrum.of(singular_values(left, torch.full_like(right, value))) is None
    assert Spectrum.of(torch.zeros(0)) is None


def test_one_bad_matrix_leaves_the_rest_of_its_batch() -> None:
    left, right = factors("a batch")
    expected = singular_values(left, right)
    left[1, 3, 2], left[2] = math.nan, 0.0
    found = singular_values(left, right)
    assert [Spectrum.of(values) is None for values in found] == [False, True, True, False, False, False]
    torch.testing.assert_close(found[3:], expected[3:], rtol=1e-5, atol=0.0)


def test_overflow_is_missing() -> None:
    left, right = factors("thin")
    assert Spectrum.of(singular_values(1e30 * left, 1e30 * right)) is None


def test_over_products_the_ratio_is_that_of_the_mean_norms() -> None:
    one = Spectrum(nuclear=2.0, frobenius=2.0, effective_rank=1.0, stable_rank=1.0)
    other = Spectrum(nuclear=40.0, frobenius=20.0, effective_rank=3.0, stable_rank=4.0)
    assert summary([one, None, other]) == {
        "nuc_over_fro": 21 / 11,
        "nuclear": 21.0,
        "frobenius": 11.0,
        "effective_rank": 2.0,
        "stable_rank": 2.5,
    }
    small = Spectrum(nuclear=0.03, frobenius=0.02, effective_rank=1.0, stable_rank=1.0)
    assert summary([small])["nuc_over_fro"] == 0.03 / 0.02
    assert summary([None]) == summary([]) == {}
