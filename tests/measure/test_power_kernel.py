"""M(s) by the compiled kernel, against float64 and against tensor operations."""

import warnings
from collections.abc import Iterator, Sequence

import pytest
import torch

from hf_pdyn.measure import power_kernel
from hf_pdyn.measure.moments import Moments
from hf_pdyn.measure.power_kernel import PowerKernel, is_worth_it
from hf_pdyn.policy.allocation_curve import EXPONENTS

CLOSE = 1e-5
"""Products of up to 36 float32 powers, 36 * 1.6e-7 at worst."""
BLOCK, CHUNK = 512, 16384


@pytest.fixture(autouse=True)
def compiled() -> None:
    assert power_kernel._works()


def drawn(numel: int, level: float = -20.0, spread: float = 2.0, seed: int = 0, eps: float = 1e-16) -> Moments:
    generator = torch.Generator().manual_seed(seed)
    v = torch.exp(level + spread * torch.randn(numel, generator=generator))
    return Moments(torch.randn(numel, generator=generator) * v.sqrt(), v, 0.3, 0.02, eps)


def exact(moments: Moments) -> torch.Tensor:
    m_hat, x = moments.exp_avg.double() / moments.of_m, moments.exp_avg_sq.double() / moments.of_v + moments.eps
    return torch.stack([(m_hat.square() * x**-s).sum() for s in EXPONENTS])


def found(pieces: Sequence[tuple[Moments, float, int]], rows: int = 1) -> torch.Tensor:
    kernel = PowerKernel(rows)
    for piece in pieces:
        kernel.add(*piece)
    return kernel.sums()


@pytest.mark.parametrize("level", [-60.0, -20.0, 0.0, 40.0])
@pytest.mark.parametrize("spread", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("eps", [1e-32, 1e-8])
def test_sums_of_one_piece(level: float, spread: float, eps: float) -> None:
    moments = drawn(5000, level, spread, eps=eps)
    torch.testing.assert_close(found([(moments, 1.0, 0)])[0], exact(moments), rtol=CLOSE, atol=0)


def test_elements_far_below_the_others() -> None:
    """Over their block's mean they are no normal float, and at s > 1 they are most of the sum."""
    moments = drawn(600, level=-3.0, spread=0.0, eps=1.2e-38)
    moments.exp_avg_sq[5], moments.exp_avg[5] = 0, 1e-20
    torch.testing.assert_close(found([(moments, 1.0, 0)])[0], exact(moments), rtol=CLOSE, atol=0)


def test_elements_far_above_the_others() -> None:
    """What they are part of stays right; others, at s > 1, may leave float32."""
    moments = drawn(600, level=0.0, spread=0.0, eps=1e-37)
    moments.exp_avg_sq[3], moments.exp_avg[3] = 1e30, 1e15
    torch.testing.assert_close(found([(moments, 1.0, 0)])[0, :37], exact(moments)[:37], rtol=CLOSE, atol=0)


@pytest.mark.parametrize("numel", [1, 15, 16, BLOCK - 1, BLOCK + 1, CHUNK, CHUNK + BLOCK + 3])
def test_any_number_of_elements(numel: int) -> None:
    moments = drawn(numel)
    torch.testing.assert_close(found([(moments, 1.0, 0)])[0], exact(moments), rtol=CLOSE, atol=0)


def test_pieces_have_weights_and_rows() -> None:
    pieces = [(drawn(numel, seed=numel), weight, row) for numel, weight, row in ((700, 2, 1), (0, 1, 0), (40, 0.5, 1))]
    pieces.append((drawn(CHUNK + 1, level=-5), 3.0, 2))
    sums = found(pieces, rows=3)
    assert (sums[0] == 0).all()
    torch.testing.assert_close(sums[1], 2 * exact(pieces[0][0]) + 0.5 * exact(pieces[2][0]), rtol=CLOSE, atol=0)
    torch.testing.assert_close(sums[2], 3 * exact(pieces[3][0]), rtol=CLOSE, atol=0)


def test_what_is_held_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = [(drawn(300, seed=seed), 1.0, seed % 2) for seed in range(5)]
    at_once = found(pieces, rows=2)
    monkeypatch.setattr(power_kernel, "_MOST_HELD", 600)
    kernel = PowerKernel(2)
    for piece in pieces:
        kernel.add(*piece)
        assert len(kernel._pieces) < 2
    assert torch.equal(kernel.sums(), at_once)
    assert torch.equal(kernel.sums(), at_once)  # asked again, nothing is added twice


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_threads_change_no_bit(threads: None) -> None:
    moments, sums = drawn(7 * CHUNK + 5), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        sums.append(found([(moments, 1.0, 0)]))
    assert torch.equal(sums[0], sums[1])
    assert torch.equal(sums[0], sums[2])


@pytest.mark.parametrize("moment", ["exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_shows_in_its_row(moment: str, bad: float) -> None:
    sick, well = drawn(2000), drawn(2000)
    getattr(sick, moment)[1500] = bad
    sums = found([(sick, 1.0, 0), (well, 1.0, 1)], rows=2)
    assert not sums[0].isfinite().any()
    assert sums[1].isfinite().all()


@pytest.mark.parametrize(
    "pair",
    [
        (torch.ones(4, dtype=torch.bfloat16), torch.ones(4)),
        (torch.ones(4), torch.ones(4, dtype=torch.float64)),
        (torch.ones(8)[::2], torch.ones(4)),
        (torch.ones(4), torch._neg_view(torch.ones(4))),
        (torch.ones(4, device="meta"), torch.ones(4)),
    ],
    ids=["bf16", "float64", "gaps", "negated", "elsewhere"],
)
def test_what_it_does_not_take(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    assert not PowerKernel.takes(Moments(*pair, 0.5, 0.5, 1e-8))
    assert PowerKernel.takes(Moments(torch.ones(4), torch.ones(4), 0.5, 0.5, 1e-8))


@pytest.mark.parametrize(
    ("fails", "said"),
    [
        ({"_library": lambda: 1 / 0}, "could not be compiled, which needs a C.. compiler"),
        ({"_largest_difference": lambda: 0.5}, "disagrees with tensor operations by 5.0e-01"),
    ],
)
def test_without_it_there_is_one_warning(fails: dict[str, object], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in fails.items():
        monkeypatch.setattr(power_kernel, name, value)
    monkeypatch.setattr(power_kernel, "_works", power_kernel.cache(power_kernel._works.__wrapped__))
    with pytest.warns(UserWarning, match=said):
        assert not is_worth_it(2**20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not is_worth_it(2**20)


def test_small_models_compile_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power_kernel, "_works", lambda: pytest.fail("compiled"))
    assert not is_worth_it(2**16 - 1)
    assert power_kernel.why_not_here() is None
