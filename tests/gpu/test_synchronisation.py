"""A step and its measurement wait for no device, by torch's own check."""

from contextlib import nullcontext

import pytest
import torch

from tests.synchronisation import OPTIONS, STEPS, accumulate, cuda_guard, step_alone

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")]


def test_the_guard_catches_what_waits() -> None:
    on_device = torch.ones(2, device="cuda")
    for waits in (
        lambda: on_device.sum().item(),
        lambda: on_device.tolist(),
        lambda: torch.tensor([1.0], device="cuda"),
    ):
        with pytest.raises(RuntimeError, match="synchronizing"), cuda_guard():
            waits()


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_step_waits_for_nothing(name: str, fused: bool) -> None:
    if fused and name == "published":
        pytest.skip("never fused")
    step_alone(name, "cuda", nullcontext, fused=fused)  # compiles
    optimizer = step_alone(name, "cuda", cuda_guard, fused=fused)
    assert {state["step"].item() for state in optimizer.state.values()} == {STEPS}


@pytest.mark.parametrize("optimizer", ["padam", "padam fused", "sgd"])
def test_a_measured_step_waits_for_nothing_and_counts(optimizer: str) -> None:
    """The reading waits, and is the CPU's: to 1e-5, float32 sums in another order."""
    optimizer, fused = optimizer.split()[0], "fused" in optimizer
    accumulate(optimizer, "cuda", nullcontext, fused=fused)  # compiles
    on_device = accumulate(optimizer, "cuda", cuda_guard, fused=fused)()
    on_host = accumulate(optimizer, "cpu", cuda_guard)()
    assert on_device.steps == on_device.measured_steps == STEPS
    assert on_device.grad_norm == pytest.approx(on_host.grad_norm, rel=1e-5)
    assert on_device.quantities.keys() == on_host.quantities.keys()
    for name, values in on_host.quantities.items():
        assert on_device.quantities[name] == pytest.approx(values, rel=1e-5), name


@pytest.mark.parametrize("fused", [True, False])
def test_a_measured_step_waits_for_nothing_where_gradients_come_and_go(fused: bool) -> None:
    accumulate("padam", "cuda", nullcontext, missing=True, fused=fused)  # compiles
    assert accumulate("padam", "cuda", cuda_guard, missing=True, fused=fused)().steps == STEPS
