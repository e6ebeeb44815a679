"""Moments in fewer bits: what a code stands for, how it is rounded, and that a run depends on nothing else."""

import copy
import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_pdyn import Padam, StepStatistics
from hf_pdyn.measure import implicit_bias
from hf_pdyn.measure.moments import Moments, moments_of
from hf_pdyn.optim import state_format
from hf_pdyn.optim.state_format import M_STORAGE, V_STORAGE, codes_of, decode, random_bits, store
from hf_pdyn.optim.step_work import StepSums
from hf_pdyn.tensors.sharding import Piece

FORMATS = ["16bit", "8_16bit"]


def stored(m: Tensor, v: Tensor, state_dtype: str, step: int = 1, start: int = 0) -> tuple[Tensor, Tensor]:
    into = torch.zeros_like(m, dtype=M_STORAGE[state_dtype]), torch.zeros_like(v, dtype=V_STORAGE)
    store(m, v, into, step=step, number=3, start=start)
    return into


def moments(numel: int) -> tuple[Tensor, Tensor]:
    """Over 27 orders of magnitude of v, with m of up to some sqrt(v)."""
    generator = torch.Generator().manual_seed(0)
    v = 10 ** (27 * torch.rand(numel, generator=generator) - 20)
    return v.sqrt() * torch.randn(numel, generator=generator), v


def test_every_code_of_v_stands_for_itself() -> None:
    """All 2^16, in the order of what they stand for: 0, then 2^-97 and more, with 9 bits of mantissa from 2^-87 on."""
    codes = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(V_STORAGE)
    v = state_format.decode_v(codes)
    assert v[0] == 0 and v[1] == 2.0**-97 and 1.0e12 < v[-1] < 1.1e12
    assert (v.diff() > 0).all()
    again = stored(torch.zeros_like(v), v, "16bit")[1]
    exact = v > 2.0**-64  # below, adding the 2^-88 that stands for 0 rounds nothing either, but for its last bit
    assert torch.equal(codes_of(again)[exact], codes_of(codes)[exact])
    relative = v.diff()[512:] / v[512:-1]
    assert relative.max() <= 2.0**-8


@pytest.mark.parametrize("state_dtype", FORMATS)
def test_every_code_of_m_stands_for_itself_beside_any_v(state_dtype: str) -> None:
    dtype = M_STORAGE[state_dtype]
    every = torch.arange(-127, 128).to(torch.int8) if dtype == torch.int8 else torch.linspace(-9, 9, 255).to(dtype)
    for v in (1e-20, 3e-7, 1.0, 5e8):
        v_code = stored(torch.zeros(255), torch.full((255,), v), state_dtype)[1]
        exact_v = state_format.decode_v(v_code)
        m = decode(every, v_code)[0]
        assert torch.equal(stored(m, exact_v, state_dtype)[0], every)
        assert m.abs().max() > 7.5 * math.sqrt(v) or state_dtype == "16bit"


@pytest.mark.parametrize("state_dtype", FORMATS)
def test_rounding_is_unbiased_and_to_a_neighbour(state_dtype: str) -> None:
    """The mean over 400 steps within five standard errors, for each of 2,000 elements; no error beyond a code."""
    m, v = moments(2000)
    # A step of bf16; of 8 bits, 2^-8 beside 2^k <= sqrt(v) next to 0; and of v.
    of_m = 2.0**-7 * m.abs() if state_dtype == "16bit" else m.abs() / 16 + v.sqrt() / 2**8
    widths = of_m, v / 511
    sums = [torch.zeros(2000, dtype=torch.float64) for _ in range(2)]
    for step in range(400):
        for total, value, true, width in zip(
            sums, decode(*stored(m, v, state_dtype, step)), (m, v), widths, strict=True
        ):
            error = value.double() - true.double()
            assert (error.abs() <= 1.001 * width).all()
            total += error
    for total, width in zip(sums, widths, strict=True):
        assert (total.abs() <= 5 * 20 * width / 2).all()  # at most half a step each


@pytest.mark.parametrize("state_dtype", FORMATS)
def test_zero_stays_zero_and_what_is_not_finite_is_seen(state_dtype: str) -> None:
    m = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1.0, 1e6])
    v = torch.tensor([0.0, 1.0, math.inf, math.inf, math.nan, 1e30, 1e30])
    found_m, found_v = decode(*stored(m, v, state_dtype))
    assert (found_m[:2] == 0).all() and found_v[0] == 0
    assert not found_m[2:5].isfinite().any()
    assert (found_v[2:] > 1e12).all() and found_v.isfinite().all()  # of larger ones, the largest
    assert found_m[5:].isfinite().all()


def test_random_bits_depend_on_the_index_in_the_whole_alone() -> None:
    whole = random_bits(1000, step=7, number=2, start=2**32 - 500, device=torch.device("cpu"))
    parts = [
        random_bits(numel, step=torch.tensor(7.0), number=2, start=2**32 - 500 + start, device=torch.device("cpu"))
        for start, numel in ((0, 300), (300, 350), (650, 350))
    ]
    assert torch.equal(torch.cat(parts), whole)
    assert whole.unique().numel() == 1000
    for other in ({"step": 8, "number": 2}, {"step": 7, "number": 3}):
        apart = random_bits(1000, start=2**32 - 500, device=torch.device("cpu"), **other)  # type: ignore[arg-type]
        assert (apart == whole).sum() < 3


def test_random_bits_are_as_good_as_random() -> None:
    """Each bit and each pair of neighbours, steps or halves within five standard errors of what coins give."""
    draws = torch.stack([random_bits(2**16, step=s, number=0, start=0, device=torch.device("cpu")) for s in range(4)])
    bits = (draws[..., None] >> torch.arange(32)) & 1
    assert ((bits.double().mean(dim=(0, 1)) - 0.5).abs() < 5 * 0.5 / 2**9).all()
    for a, b in ((draws[:, 1:], draws[:, :-1]), (draws[1:], draws[:-1]), (draws >> 18, draws & 0xFFFF)):
        assert correlation(a, b).abs() < 5 / math.sqrt(a.numel())


def test_random_bits_of_elements_far_apart_are_nearly_independent() -> None:
    """Distances of a row's or a column's neighbour; five standard errors are 0.005, and they are not independent."""
    draws = random_bits(2**21, step=3, number=1, start=0, device=torch.device("cpu"))
    for distance in (768, 3072, 2**14, 2**16, 2**20):
        for part in (draws >> 18, draws & 0xFFFF, draws & 0x7FFFF):  # what v and m take
            assert correlation(part[distance:], part[:-distance]).abs() < 0.02, distance


def correlation(a: Tensor, b: Tensor) -> Tensor:
    return torch.corrcoef(torch.stack([a.flatten().double(), b.flatten().double()]))[0, 1]


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(60, 40), nn.LayerNorm(40), nn.Linear(40, 3))


def take_steps(optimizer: Padam, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.grad = torch.randn(param.shape, generator=generator).to(param.dtype) * 1e-2
        optimizer.step()


def everything(optimizer: Padam) -> list[Tensor]:
    params = [param for group in optimizer.param_groups for param in group["params"]]
    return [*(param.detach() for param in params), *(v for p in params for v in optimizer.state[p].values())]


SETTINGS: dict[str, dict[str, Any]] = {
    "raw": {},
    "matched": {"p": 0.3, "update_scale": "adam"},
    "amsgrad": {"amsgrad": True},
    "coupled": {"decoupled_weight_decay": False, "maximize": True},
    "short first moment": {"betas": (0.3, 0.9)},
}


@pytest.mark.parametrize("state_dtype", FORMATS)
@pytest.mark.parametrize("settings", SETTINGS)
def test_the_fused_step_is_the_tensor_step(settings: str, state_dtype: str) -> None:
    """Codes bit for bit in all but some in a thousand, which a rounding of float32 has moved over a threshold."""
    networks = [model(), model()]
    optimizers = [
        Padam(network.parameters(), lr=1e-3, state_dtype=state_dtype, fused=fused, **SETTINGS[settings])
        for network, fused in zip(networks, (True, False), strict=True)
    ]
    for optimizer in optimizers:
        take_steps(optimizer, range(4))
    for a, b in zip(*(network.parameters() for network in networks), strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            ours, theirs = (optimizer.state[p][name] for optimizer, p in zip(optimizers, (a, b), strict=True))
            assert (codes_of(ours) != codes_of(theirs)).float().mean() < 0.01
        torch.testing.assert_close(a, b, rtol=0, atol=3e-4)
        assert ((a - b).abs() > 1e-6).float().mean() < 0.01


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("state_dtype", FORMATS)
def test_a_run_repeats_itself_and_resumes_bit_for_bit(state_dtype: str, fused: bool) -> None:
    runs = []
    for stop in (None, 3):
        network = model()
        optimizer = Padam(network.parameters(), p=0.3, state_dtype=state_dtype, fused=fused)
        take_steps(optimizer, range(stop or 6))
        if stop is not None:
            saved = io.BytesIO()
            torch.save(optimizer.state_dict(), saved)
            saved.seek(0)
            optimizer = Padam(network.parameters(), p=0.3, state_dtype=state_dtype, fused=fused)
            optimizer.load_state_dict(torch.load(saved, weights_only=True))
            take_steps(optimizer, range(stop, 6))
        runs.append(everything(optimizer))
    for a, b in zip(*runs, strict=True):
        assert a.dtype == b.dtype and torch.equal(codes_of(a), codes_of(b))


def test_the_number_of_bytes_is_what_the_documentation_says() -> None:
    for state_dtype, expected in {"fp32": 8, "16bit": 4, "8_16bit": 3}.items():
        param = nn.Parameter(torch.ones(1000))
        optimizer = Padam([param], state_dtype=state_dtype)
        take_steps(optimizer, range(1))
        state = optimizer.state[param]
        held = sum(v.numel() * v.element_size() for name, v in state.items() if name != "step")
        assert held == expected * 1000


@pytest.mark.parametrize("before", ["fp32", *FORMATS])
@pytest.mark.parametrize("after", ["fp32", *FORMATS])
def test_a_checkpoint_in_another_format_is_converted_and_said(before: str, after: str) -> None:
    network = model()
    optimizer = Padam(network.parameters(), state_dtype=before, amsgrad=True)
    take_steps(optimizer, range(5))
    expected = [decode(*[state[name] for name in NAMES]) for state in optimizer.state.values()]
    other = Padam(network.parameters(), state_dtype=after, amsgrad=True)
    saved = copy.deepcopy(optimizer.state_dict())
    if before == after:
        other.load_state_dict(saved)
    else:
        with pytest.warns(UserWarning, match=f"converted from {before} to {after}, in which this run stores them"):
            other.load_state_dict(saved)
    for moments, state in zip(expected, other.state.values(), strict=True):
        m, *vs = decode(*[state[name] for name in NAMES])
        assert state["exp_avg"].dtype == M_STORAGE.get(after, torch.float32)
        torch.testing.assert_close(m, moments[0], rtol=1 / 16, atol=1e-5)
        for v, expected_v in zip(vs, moments[1:], strict=True):
            torch.testing.assert_close(v, expected_v, rtol=1 / 400, atol=0)
    take_steps(other, range(5, 6))
    assert all(group["state_dtype"] == after for group in other.param_groups)


NAMES = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("state_dtype", FORMATS)
def test_what_is_measured_is_of_the_moments_as_they_are_stored(state_dtype: str, fused: bool) -> None:
    network = model()
    optimizer = Padam(network.parameters(), p=0.3, lr=1e-3, weight_decay=0.0, state_dtype=state_dtype, fused=fused)
    pieces = [Piece(param) for param in network.parameters()]
    take_steps(optimizer, range(2))
    request = StepSums(pieces, measure=True)
    before = [param.detach().double() for param in network.parameters()]
    optimizer.sum_next_step(request)
    take_steps(optimizer, range(2, 3))
    assert request.rows is not None and request.failure is None
    read = implicit_bias.coefficient_sums(optimizer, pieces)
    torch.testing.assert_close(
        implicit_bias.coefficient_sums(optimizer, pieces, request.rows[:, -2:]), read, rtol=1e-5, atol=0
    )
    for piece, row, start in zip(pieces, request.rows, before, strict=True):
        found = moments_of(optimizer, optimizer.param_groups[0], piece)
        assert isinstance(found, Moments)
        x = found.exp_avg_sq.double() / found.of_v + found.eps
        update = 1e-3 * found.exp_avg.double() / found.of_m * x**-0.3
        torch.testing.assert_close(start - piece.holder.detach().double(), update, rtol=1e-3, atol=1e-7)
        assert row[1].item() == pytest.approx(update.square().sum().item(), rel=1e-5)
        assert row[3].item() == pytest.approx((found.exp_avg_sq.double() / found.of_v).sum().item(), rel=1e-5)


def test_telemetry_of_a_closure_reads_the_stored_moments() -> None:
    readings = []
    for state_dtype in ("fp32", "16bit"):
        network = model()
        optimizer = Padam(network.parameters(), p=0.3, state_dtype=state_dtype)
        statistics = StepStatistics(optimizer, network)
        window = statistics.window()
        take_steps(optimizer, range(3))
        statistics.measure_next_step()
        optimizer.step(lambda: 0.0)
        readings.append(window.read().quantities["v_hat_mean"])
    for scope, value in readings[0].items():
        assert readings[1][scope] == pytest.approx(value, rel=1e-2)


@pytest.mark.parametrize("state_dtype", FORMATS)
@pytest.mark.parametrize("p", [-0.4, 0.0, 0.25, 0.5, 1.0])
def test_zero_tiny_and_spiky_gradients_stay_bounded(p: float, state_dtype: str) -> None:
    """At every p, updates stay within a factor of those of float32 moments, and everything is finite."""
    largest = {}
    for form in ("fp32", state_dtype):
        param = nn.Parameter(torch.zeros(6, 200))
        optimizer = Padam([param], lr=1.0, p=p, eps=1e-16, weight_decay=0.0, state_dtype=form)
        seen = torch.zeros(6)
        for step in range(300):
            generator = torch.Generator().manual_seed(step)
            noise = torch.randn(6, 200, generator=generator)
            sizes = torch.tensor([0.0, 1e-12, 1e-6, 1.0, 1e3, 1e-3 if step % 50 else 1e3])
            param.grad = noise * sizes[:, None]
            before = param.detach().clone()
            optimizer.step()
            seen = torch.maximum(seen, (param.detach() - before).abs().amax(dim=1))
        assert param.isfinite().all()
        largest[form] = seen
    assert (largest[state_dtype][0] == 0).all()
    assert (largest[state_dtype] <= 1.6 * largest["fp32"] + 1e-30).all()


def test_parameters_that_need_more_bits_are_refused() -> None:
    for dtype in (torch.float64, torch.complex64):
        with pytest.raises(
            ValueError, match=r'state_dtype="16bit" is for parameters of float32, bf16 and fp16, got one'
        ):
            Padam([nn.Parameter(torch.ones(3, dtype=dtype))], state_dtype="16bit")
    with pytest.raises(ValueError, match=r"at most 7.7 times the root of .* got betas=\(0.0, 0.999\)"):
        Padam([nn.Parameter(torch.ones(3))], betas=(0.0, 0.999), state_dtype="8_16bit")
    with pytest.raises(ValueError, match="state_dtype must be"):
        Padam([nn.Parameter(torch.ones(3))], state_dtype="8bit")  # type: ignore[arg-type]


def test_rounding_to_nearest_stalls_where_this_does_not() -> None:
    """v of gradients whose size falls to a fifth, over 4,000 steps: bf16 to nearest stays far too large."""
    generator = torch.Generator().manual_seed(0)
    m, v = torch.zeros(500), torch.ones(500)
    into, nearest, exact = stored(m, v, "16bit"), v.bfloat16(), v.clone()
    for step in range(1, 4001):
        square = (0.2 * torch.randn(500, generator=generator)).square() * 0.001
        exact = 0.999 * exact + square
        nearest = (0.999 * nearest.float() + square).bfloat16()
        store(m, 0.999 * decode(*into)[1] + square, into, step=step, number=0, start=0)
    assert decode(*into)[1].mean().item() == pytest.approx(exact.mean().item(), rel=5e-3)
    assert nearest.float().mean() > 2 * exact.mean()
