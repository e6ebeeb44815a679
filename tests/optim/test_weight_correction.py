import copy
import io
import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_pdyn import Padam
from hf_pdyn.optim import weight_correction
from hf_pdyn.optim.weight_correction import joined, split, zeros
from tests.optim.test_state_format import SETTINGS, model, take_steps

STATE_DTYPES = ["fp32", "16bit", "8_16bit"]


def stored(exact: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    theta = torch.full_like(exact, 7.0, dtype=dtype)
    correction = zeros(theta)
    split(exact, theta, correction)
    return theta, correction


def x_of(optimizer: Padam, param: Tensor) -> Tensor:
    return joined(param.detach(), optimizer.state[param]["weight_correction"])


def test_bf16_and_its_correction_are_float32_bit_for_bit() -> None:
    """Any number but those below half of bf16's smallest, which become 0."""
    bits = torch.randint(-(2**31), 2**31, (200_000,), generator=torch.Generator().manual_seed(0)).int()
    ties = (torch.arange(-(2**15), 2**15, dtype=torch.int32) << 16) + 0x8000
    exact = torch.cat([bits, ties]).view(torch.float32)
    exact = exact[exact.isfinite() & (exact.abs() > 2.0**-133)]
    theta, correction = stored(exact, torch.bfloat16)
    assert torch.equal(joined(theta, correction).view(torch.int32), exact.view(torch.int32))
    distance = (theta.double() - exact.double()).abs()
    finite = theta.isfinite()
    assert (distance <= 2.0**-8 * exact.double().abs() + 2.0**-134)[finite].all()


def test_fp16_and_its_correction_are_float32_where_fp16_is_normal() -> None:
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(100_000, generator=generator) * 2.0 ** torch.randint(-13, 13, (100_000,), generator=generator)
    theta, correction = stored(exact, torch.float16)
    normal = exact.abs() >= 2.0**-14
    assert torch.equal(joined(theta, correction)[normal], exact[normal])
    assert torch.equal(theta, exact.half())
    small = torch.randn(10_000, generator=generator) * 2.0**-17
    assert ((joined(*stored(small, torch.float16)) - small).abs() <= 2.0**-39).all()


@pytest.mark.parametrize("dtype", weight_correction.DTYPES)
def test_special_numbers_stay_what_they_are(dtype: torch.dtype) -> None:
    special = torch.tensor([0.0, -0.0, 1.0, math.inf, -math.inf, math.nan])
    payload = torch.tensor([0x7FFFFFFF, -1], dtype=torch.int32).view(torch.float32)
    for exact in (special, payload):
        theta, correction = stored(exact, dtype)
        assert torch.equal(theta.float().nan_to_num(5.0), exact.nan_to_num(5.0))
        assert torch.equal(joined(theta, correction).nan_to_num(5.0), exact.nan_to_num(5.0))


@pytest.mark.parametrize("dtype", weight_correction.DTYPES)
def test_where_somebody_else_has_written_it_is_off_by_half_a_spacing_at_most(dtype: torch.dtype) -> None:
    _, correction = stored(torch.randn(1000, generator=torch.Generator().manual_seed(0)), dtype)
    for written in (torch.zeros(1000), torch.full((1000,), -3.0), torch.full((1000,), 2.0**-20)):
        theta = written.to(dtype)
        limit = written.abs() * torch.finfo(dtype).eps / 2 + 2.0**-25 * (dtype == torch.float16)
        assert ((joined(theta, correction) - theta.float()).abs() <= limit).all()


def with_corrections(fused: bool, **settings: Any) -> tuple[nn.Module, Padam]:
    network = model().to(torch.bfloat16)
    return network, Padam(network.parameters(), lr=1e-4, weight_correction=True, fused=fused, **settings)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("state_dtype", STATE_DTYPES)
@pytest.mark.parametrize("settings", SETTINGS)
def test_bf16_parameters_are_stepped_as_float32_ones_are(settings: str, state_dtype: str, fused: bool) -> None:
    """From the same start and with the same gradients, bit for bit; moments too."""
    options = {"state_dtype": state_dtype, "weight_decay": 0.1, **SETTINGS[settings]}
    ours, optimizer = with_corrections(fused, **options)
    exact = copy.deepcopy(ours).float()
    reference = Padam(exact.parameters(), lr=1e-4, fused=fused, **options)
    for step in range(8):
        generator = torch.Generator().manual_seed(step)
        for a, b in zip(ours.parameters(), exact.parameters(), strict=True):
            a.grad = torch.randn(a.shape, generator=generator).to(torch.bfloat16) * 1e-2
            b.grad = a.grad.float()
        optimizer.step()
        reference.step()
    for a, b in zip(ours.parameters(), exact.parameters(), strict=True):
        assert torch.equal(x_of(optimizer, a), b)
        assert torch.equal(a, joined(a, zeros(a)).to(a.dtype)) and (a.float() - b).abs().max() > 0
        for name in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(
                optimizer.state[a][name].view(torch.uint8), reference.state[b][name].view(torch.uint8)
            ), name


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("state_dtype", STATE_DTYPES)
def test_updates_too_small_for_bf16_add_up(state_dtype: str, fused: bool) -> None:
    """lr is a ten-thousandth of the parameters: without corrections none moves in 600 steps, with them all do.

    Against float64 steps of float64 parameters: to 1e-5 with float32 moments, and within the noise of fewer bits.
    """
    ones = torch.linspace(1.0, 2.0, 70_000).to(torch.bfloat16)
    slope = torch.where(torch.arange(70_000) % 2 == 0, 1.0, -1.0)
    exact = ones.double()
    m, v = torch.zeros_like(exact), torch.zeros_like(exact)
    params = [nn.Parameter(ones.clone()) for _ in range(2)]
    options = {"lr": 1e-4, "p": 0.5, "weight_decay": 0.0, "state_dtype": state_dtype, "fused": fused}
    optimizers = [
        Padam([param], weight_correction=corrected, **options)
        for param, corrected in zip(params, (False, True), strict=True)
    ]
    for t in range(1, 601):
        size = (1 + 0.5 * math.sin(t)) * 1e-2
        grad = (slope * size).to(torch.bfloat16)
        m, v = 0.9 * m + 0.1 * grad.double(), 0.999 * v + 0.001 * grad.double() ** 2
        exact -= 1e-4 * m / (1 - 0.9**t) / (v / (1 - 0.999**t)).sqrt()
        for param, optimizer in zip(params, optimizers, strict=True):
            param.grad = grad
            optimizer.step()
    stalled, moved = params
    assert torch.equal(stalled, ones)
    x = x_of(optimizers[1], moved).double()
    torch.testing.assert_close(x, exact, rtol=0, atol=1e-5 if state_dtype == "fp32" else 2e-3)
    assert (x - ones.double()).abs().min() > 0.05
    assert ((moved.double() - x).abs() <= 2.0**-8 * x).all()


def test_fp16_parameters_are_stepped_as_float32_ones_are() -> None:
    ours = model().half()
    optimizer = Padam(ours.parameters(), lr=1e-5, weight_correction=True)
    exact = copy.deepcopy(ours).float()
    reference = Padam(exact.parameters(), lr=1e-5)
    for step in range(20):
        generator = torch.Generator().manual_seed(step)
        for a, b in zip(ours.parameters(), exact.parameters(), strict=True):
            a.grad = torch.randn(a.shape, generator=generator).half()
            b.grad = a.grad.float()
        optimizer.step()
        reference.step()
    for a, b in zip(ours.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(x_of(optimizer, a), b, rtol=1e-7, atol=2e-11)


@pytest.mark.parametrize("fused", [True, False])
def test_a_run_resumes_bit_for_bit(fused: bool) -> None:
    runs = []
    for stop in (6, 3):
        network, optimizer = with_corrections(fused, state_dtype="8_16bit", p=0.3)
        take_steps(optimizer, range(stop))
        saved = io.BytesIO()
        torch.save(optimizer.state_dict(), saved)
        saved.seek(0)
        optimizer = Padam(
            network.parameters(), lr=1e-4, weight_correction=True, fused=fused, state_dtype="8_16bit", p=0.3
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            optimizer.load_state_dict(torch.load(saved, weights_only=True))
        take_steps(optimizer, range(stop, 8))
        runs.append([value for p in network.parameters() for value in (p, *optimizer.state[p].values())])
    for a, b in zip(*runs, strict=True):
        assert a.dtype == b.dtype and torch.equal(a.detach().view(-1).view(torch.uint8), b.view(-1).view(torch.uint8))


@pytest.mark.parametrize("before", [True, False])
def test_loading_with_or_without_corrections_says_so(before: bool) -> None:
    network = model().to(torch.bfloat16)
    optimizer = Padam(network.parameters(), weight_correction=before)
    take_steps(optimizer, range(3))
    other = Padam(network.parameters(), weight_correction=not before)
    said = "left out, since this run has weight_correction=False" if before else "begin at 0, since the checkpoint"
    with pytest.warns(UserWarning, match=said):
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert all(group["weight_correction"] is not before for group in other.param_groups)
    for state in other.state.values():
        assert ("weight_correction" in state) is not before
        assert before or not state["weight_correction"].view(torch.int16).any()
    take_steps(other, range(3, 5))
    assert any(state.get("weight_correction", torch.ones(1)).view(torch.int16).any() for state in other.state.values())


def test_only_parameters_of_16_bits_have_one_of_2_bytes_a_parameter() -> None:
    half, whole = nn.Parameter(torch.ones(1000, dtype=torch.bfloat16)), nn.Parameter(torch.ones(1000))
    optimizer = Padam([half, whole], weight_correction=True)
    take_steps(optimizer, range(2))
    correction = optimizer.state[half]["weight_correction"]
    assert correction.numel() * correction.element_size() == 2000
    assert "weight_correction" not in optimizer.state[whole]


def test_where_it_reaches_nobody_is_said() -> None:
    with pytest.raises(ValueError, match=r"keeps what rounding leaves of bf16 and fp16 parameters, got torch.float32"):
        Padam([nn.Parameter(torch.ones(3))], weight_correction=True)
    with pytest.raises(ValueError, match="weight_correction must be True or False, got 1"):
        Padam([nn.Parameter(torch.ones(3))], weight_correction=1)  # type: ignore[arg-type]
    optimizer = Padam([nn.Parameter(torch.ones(3, dtype=torch.bfloat16))], weight_correction=True)
    weight_correction._say_once.cache_clear()
    optimizer.param_groups[0]["params"] = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))]
    with pytest.warns(UserWarning, match="weight_correction=True does nothing: .* of torch.float32") as said:
        take_steps(optimizer, range(2))
    assert len(said) == 1


@pytest.mark.parametrize("fused", [True, False])
def test_it_can_be_switched_between_steps(fused: bool) -> None:
    _, optimizer = with_corrections(fused)
    for corrected in (False, True, False):
        for group in optimizer.param_groups:
            group["weight_correction"] = corrected
        before = [copy.deepcopy(state.get("weight_correction")) for state in optimizer.state.values()]
        take_steps(optimizer, range(2))
        for old, state in zip(before, optimizer.state.values(), strict=False):
            new = state.get("weight_correction")
            if corrected:
                assert new is not None and new.view(torch.int16).any()
            elif old is not None and new is not None:
                assert torch.equal(new.view(torch.int16), old.view(torch.int16))
            else:
                assert new is None
