"""A step waits for no device. Shown where there is none: see `meta_guard` for what that catches."""

import pytest
import torch

from hf_pdyn.measure.windows import Scope, Window
from tests.synchronisation import OPTIONS, accumulate, meta_guard, step_alone


def test_the_guard_catches_what_would_wait() -> None:
    on_device, on_host = torch.ones(2, device="meta"), torch.ones(2)
    for waits in (
        lambda: on_device.sum().item(),
        lambda: on_device.tolist(),
        lambda: bool(on_device[0] > 0),
        lambda: on_device.cpu(),
        lambda: on_host.to("meta"),
        lambda: torch.tensor([1.0], device="meta"),
        lambda: torch.as_tensor(1.0, device="meta"),
        lambda: on_device.copy_(on_host),
    ):
        with pytest.raises(RuntimeError), meta_guard():
            waits()
    with meta_guard():
        torch.full((), 1.0, device="meta").mul_(torch.tensor(2.0)).to(torch.float64)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_step_sends_and_reads_nothing(name: str) -> None:
    step_alone(name, "meta", meta_guard)


@pytest.mark.parametrize("optimizer", ["padam", "sgd"])
def test_a_measured_step_sends_and_reads_nothing(optimizer: str) -> None:
    accumulate(optimizer, "meta", meta_guard)


def test_a_measured_step_sends_nothing_where_gradients_come_and_go() -> None:
    accumulate("padam", "meta", meta_guard, missing=True)


def test_what_is_read_on_the_host_stands_there_whatever_the_default_device() -> None:
    """As after torch.set_default_device("cuda")."""
    with torch.device("meta"):
        optimizer = step_alone("decay", "meta", meta_guard)
        window = Window([Scope("weight")], lambda sums: sums)
        for _ in range(2):
            window.add(torch.tensor([4.0, 4.0], dtype=torch.float64, device="cpu"), 1.0, None)
        reading = window.read()
    assert {state["step"].device.type for state in optimizer.state.values()} == {"cpu"}
    assert reading.grad_norm[Scope("weight")] == pytest.approx(4.0)  # 2 after clipping by half
