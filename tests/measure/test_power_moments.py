"""M(s) of real optimizers, against directions computed anew in float64."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from hf_pdyn import Padam, StepStatistics, build_param_groups
from hf_pdyn.measure import power_kernel
from hf_pdyn.measure.power_moments import PowerMomentsReader
from hf_pdyn.measure.windows import Scope
from hf_pdyn.policy import allocation_curve as curve

WEIGHT, BIAS = Scope("weight"), Scope("bias_like")
TRIED = (-0.4, 0.0, 0.25, 0.37, 0.5, 1.0)
CLOSE = 1e-5
"""Float32 powers of float32 moments (4e-6), and log M between the grid's points (1e-6)."""


@pytest.fixture(autouse=True, params=[0, 2**62], ids=["kernel", "tensor operations"])
def kernel_from(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elements from which a CPU's moments are summed by the kernel."""
    monkeypatch.setattr(power_kernel, "WORTH_COMPILING", request.param)


def trained(
    make: Callable[[nn.Module], Any], steps: int = 4, width: int = 16, device: str = "cpu"
) -> tuple[nn.Module, Any, StepStatistics]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, width), nn.LayerNorm(width), nn.Linear(width, 2)).to(device)
    optimizer = make(model)
    statistics = StepStatistics(optimizer, model)
    for step in range(steps):
        optimizer.zero_grad()
        model((torch.randn(5, 4) * 10.0**step).to(device)).square().sum().backward()
        optimizer.step()
    return model, optimizer, statistics


def read(statistics: StepStatistics, per_layer: bool = True) -> dict[Scope, curve.PowerMoments]:
    found = PowerMomentsReader(statistics, per_layer=per_layer).read()
    assert found.reason is None
    return found.moments


def direction(optimizer: Any, param: torch.Tensor, p: float, eps: float, second: str = "exp_avg_sq") -> torch.Tensor:
    state = optimizer.state[param]
    m, v = (
        state[name].double() / (1 - beta ** float(state["step"])) for name, beta in (("exp_avg", 0.9), (second, 0.999))
    )
    return (m * (v + eps) ** -p).flatten()


def padam(model: nn.Module, **settings: Any) -> Padam:
    return Padam(build_param_groups(model, weight_decay=0.0), lr=1e-3, **settings)


OPTIMIZERS: dict[str, tuple[Callable[[nn.Module], Any], float, str]] = {
    "padam": (padam, 1e-16, "exp_avg_sq"),
    "padam, p=0.25": (lambda model: padam(model, p=0.25, eps=1e-6), 1e-6, "exp_avg_sq"),
    "padam, amsgrad": (lambda model: padam(model, amsgrad=True), 1e-16, "max_exp_avg_sq"),
    "adamw": (lambda model: torch.optim.AdamW(model.parameters()), 1e-16, "exp_avg_sq"),
    "adamw, fused": (lambda model: torch.optim.AdamW(model.parameters(), fused=True), 1e-16, "exp_avg_sq"),
    "adam, eps": (lambda model: torch.optim.Adam(model.parameters(), eps=1e-3), 1e-6, "exp_avg_sq"),
}


@pytest.mark.parametrize("p", TRIED)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_curve_is_that_of_directions_computed_anew(name: str, p: float) -> None:
    assert_curve_of_directions(name, p)


def assert_curve_of_directions(name: str, p: float, width: int = 16, device: str = "cpu") -> None:
    make, eps, second = OPTIMIZERS[name]
    _, optimizer, statistics = trained(make, width=width, device=device)
    moments = read(statistics)
    by_scope = {
        scope: [piece.holder for piece, scopes in statistics.scopes_of.items() if scope in scopes] for scope in moments
    }
    assert set(moments) == set(statistics.scopes)
    for scope, params in by_scope.items():
        expected = torch.cat([direction(optimizer, param, p, eps, second) for param in params]).norm().item()
        assert math.exp(moments[scope].log_norm(p)) == pytest.approx(expected, rel=CLOSE), scope


@pytest.mark.parametrize("fused", [False, True])
def test_it_predicts_the_update_that_another_p_takes_from_the_same_state(fused: bool) -> None:
    """The run has p=0.4; a copy goes on with p=0.25. Moments of the coming step are read before its p is known."""

    def make(model: nn.Module) -> Padam:
        return padam(model, p=0.4, fused=fused or None)

    model, optimizer, statistics = trained(make)
    before = [param.detach().double() for param in model.parameters()]
    for group in optimizer.param_groups:
        group.update(p=0.25, betas=(0.9, 0.999))
    gradients = [param.grad for param in model.parameters()]
    assert all(gradient is not None for gradient in gradients)
    optimizer.step()
    moments = read(statistics)
    moved = {WEIGHT: 0.0, BIAS: 0.0}
    for (name, param), old in zip(model.named_parameters(), before, strict=True):
        pathway = BIAS if name.endswith("bias") or name.startswith("1.") else WEIGHT
        moved[pathway] += (param.detach().double() - old).square().sum().item()
    # Parameters are float32: an update of 1e-3 is known to 1e-5 where they are about 1.
    for scope in (WEIGHT, BIAS):
        assert 1e-3 * math.exp(moments[scope].log_norm(0.25)) == pytest.approx(moved[scope] ** 0.5, rel=3e-5)


def test_groups_count_with_their_learning_rates() -> None:
    def make(model: nn.Module) -> Padam:
        optimizer = padam(model)
        for group in optimizer.param_groups:
            if group["pathway"] == "bias_like":
                group["lr"] = torch.tensor(1e-4)
        return optimizer

    alike = read(trained(padam, steps=1)[2])
    fewer = read(trained(make, steps=1)[2])
    ratio, smaller = (curve.update_ratio(found[WEIGHT], found[BIAS], 0.3) for found in (alike, fewer))
    assert smaller == pytest.approx(10 * ratio, rel=CLOSE)


def test_components_and_layers_add_up() -> None:
    moments = read(trained(padam)[2])
    for pathway in (WEIGHT, BIAS):
        parts = [scope for scope in moments if scope.pathway == pathway.pathway]
        for kind in ("component", "layer"):
            of_kind = [moments[scope] for scope in parts if getattr(scope, kind) is not None]
            assert curve.total(of_kind).log_values == pytest.approx(moments[pathway].log_values, abs=CLOSE)


def test_layers_are_left_out_where_nobody_asked() -> None:
    statistics = trained(padam)[2]
    few, all_of_them = read(statistics, per_layer=False), read(statistics)
    assert set(few) == {scope for scope in all_of_them if scope.layer is None}
    for scope, moments in few.items():
        assert moments.log_values == pytest.approx(all_of_them[scope].log_values, abs=CLOSE)


def test_tensors_larger_than_a_part() -> None:
    make = padam
    model, optimizer, statistics = trained(make, width=100_000, steps=2)
    moments = read(statistics)
    params = [param for name, param in model.named_parameters() if name in ("0.weight", "2.weight")]
    expected = torch.cat([direction(optimizer, param, 0.3, 1e-16) for param in params]).norm().item()
    assert math.exp(moments[WEIGHT].log_norm(0.3)) == pytest.approx(expected, rel=CLOSE)


def test_what_has_no_gradient_does_not_count() -> None:
    def make(model: nn.Module) -> Padam:
        model[2].requires_grad_(False)
        return padam(model)

    statistics = trained(make)[2]
    found = PowerMomentsReader(statistics, per_layer=False).read()
    assert WEIGHT in found.moments and found.reason is None


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda model: torch.optim.SGD(model.parameters(), lr=1e-6), "SGD"),
        (lambda model: torch.optim.Adafactor(model.parameters()), "Adafactor keeps no first"),
    ],
)
def test_optimizers_without_moments_have_a_reason(make: Any, reason: str) -> None:
    found = PowerMomentsReader(trained(make)[2], per_layer=False).read()
    assert not found.moments
    assert reason in (found.reason or "")


def test_moments_that_are_not_finite_leave_out_their_scopes() -> None:
    model, optimizer, statistics = trained(padam)
    optimizer.state[model[0].bias]["exp_avg"][0] = math.nan
    found = PowerMomentsReader(statistics, per_layer=True).read()
    assert WEIGHT in found.moments and BIAS not in found.moments and Scope("bias_like", "0") not in found.moments


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of torch.compile within it
def test_moments_of_torchao() -> None:
    optim = pytest.importorskip("torchao.optim")
    _, optimizer, statistics = trained(lambda model: optim.AdamW8bit(model.parameters()), width=2048)
    state = next(state for state in optimizer.state.values() if type(state["exp_avg"]).__name__ == "OptimState8bit")
    assert state["exp_avg"].dequantize().shape == state["exp_avg"].shape
    assert set(read(statistics)) == set(statistics.scopes)


def test_moments_of_bitsandbytes() -> None:
    """In 8 bits the size of an update is that of 32 bits to a few percent."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    in_bits = {
        bits: read(
            trained(
                lambda model, bits=bits: bitsandbytes.optim.AdamW(
                    model.parameters(), optim_bits=bits, min_8bit_size=256
                ),
                steps=2,
                width=2048,
            )[2]
        )
        for bits in (8, 32)
    }
    for scope in (WEIGHT, BIAS):
        norms = [math.exp(in_bits[bits][scope].log_norm(0.5)) for bits in (8, 32)]
        assert norms[0] == pytest.approx(norms[1], rel=0.2)
