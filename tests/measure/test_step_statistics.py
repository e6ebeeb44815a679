"""`StepStatistics` in a bare loop; with the Trainer it is tested in callbacks/."""

import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hf_pdyn import Padam, StepStatistics, build_param_groups
from hf_pdyn.measure.windows import MEASURED, Scope, Window


def model_with_gradients() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    model(torch.randn(5, 4)).square().sum().backward()
    return model


def consume(steps: Iterable[Any]) -> None:
    for _ in steps:
        pass


def norm(model: nn.Module, *names: str) -> float:
    params = dict(model.named_parameters())
    return torch.cat([params[name].grad.flatten() for name in names]).norm().item()


OPTIMIZERS: dict[str, Any] = {
    "padam": lambda model: Padam(build_param_groups(model, weight_decay=0.1), p=0.3),
    "adamw": lambda model: torch.optim.AdamW(model.parameters()),
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
    "rmsprop": lambda model: torch.optim.RMSprop(model.parameters()),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_norms_by_pathway_and_layer(name: str) -> None:
    model = model_with_gradients()
    optimizer = OPTIMIZERS[name](model)
    window = StepStatistics(optimizer, model).window()
    optimizer.step()
    reading = window.read()
    assert reading.weight_norm == pytest.approx(norm(model, "0.weight", "2.weight"), rel=1e-6)
    assert reading.bias_norm == pytest.approx(norm(model, "0.bias", "1.weight", "1.bias", "2.bias"), rel=1e-6)
    assert reading.grad_norm[Scope("bias_like", "1")] == pytest.approx(norm(model, "1.weight", "1.bias"), rel=1e-6)
    assert (reading.steps, reading.measured_steps, reading.quantities) == (1, 0, {})


class Synchronisations(TorchDispatchMode):
    """Counts what reads a number off the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("measured", [False, True])
def test_a_step_reads_nothing_off_the_device(measured: bool) -> None:
    model = model_with_gradients()
    optimizer = OPTIMIZERS["sgd"](model)
    statistics = StepStatistics(optimizer, model)
    window = statistics.window()
    with Synchronisations() as synchronisations:
        for _ in range(3):
            if measured:
                statistics.measure_next_step()
            optimizer.step()
    assert synchronisations.count == 0
    assert len(window) == 3
    assert window.read().steps == 3


def test_a_closure_s_gradients_are_the_ones_measured() -> None:
    model = model_with_gradients()
    model.zero_grad()
    optimizer = OPTIMIZERS["sgd"](model)
    statistics = StepStatistics(optimizer, model)
    window = statistics.window()
    statistics.measure_next_step()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(torch.ones(3, 4)).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    reading = window.read()
    assert reading.weight_norm == pytest.approx(norm(model, "0.weight", "2.weight"), rel=1e-6)
    assert reading.quantities["update_norm"][Scope("weight")] == pytest.approx(0.1 * reading.weight_norm, rel=1e-5)


def test_windows_are_independent_and_end_with_their_last_reference() -> None:
    model = model_with_gradients()
    optimizer = OPTIMIZERS["sgd"](model)
    statistics = StepStatistics(optimizer, model)
    short, long = statistics.window(), statistics.window()
    optimizer.step()
    assert short.read().steps == 1
    optimizer.step()
    assert (short.read().steps, long.read().steps) == (1, 2)
    assert short.read().grad_norm == {}
    del short, long
    assert not statistics.windows


def test_a_long_window_is_folded_on_the_way() -> None:
    model = model_with_gradients()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    window = StepStatistics(optimizer, model).window()
    for _ in range(1500):
        optimizer.step()
    assert len(window) == 1500
    reading = window.read()
    assert reading.steps == 1500
    assert reading.weight_norm == pytest.approx(norm(model, "0.weight", "2.weight"), rel=1e-6)


def test_tensors_that_are_not_the_model_s_are_said_to_be_unavailable() -> None:
    model = model_with_gradients()
    partitions = nn.Parameter(torch.cat([param.detach().flatten() for param in model.parameters()]))
    statistics = StepStatistics(torch.optim.SGD([partitions], lr=0.1), model)
    assert statistics.unavailable is not None
    assert "not the model's" in statistics.unavailable
    with pytest.warns(UserWarning, match="pdyn metrics of gradients and updates: .*not the model's"):
        statistics.window()
    assert statistics.pathways == frozenset()


def test_a_failure_on_one_of_several_processes_leaves_the_step_out_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others wait for this one's part of the sums: it is NaN, as long as theirs."""
    model = model_with_gradients()
    optimizer = OPTIMIZERS["sgd"](model)
    statistics = StepStatistics(optimizer, model)
    window = statistics.window()
    parts: list[torch.Tensor] = []
    window._add_up = lambda sums: (parts.append(sums), sums)[1]
    statistics._shards.sharded = True

    def fail(*args: Any) -> None:
        raise MemoryError("none left")

    optimizer.step()
    monkeypatch.setattr("hf_pdyn.measure.step_statistics.norms.two_norms", fail)
    statistics.measure_next_step()
    with pytest.warns(UserWarning, match="MemoryError: none left"):
        optimizer.step()
    optimizer.step()
    assert len(window) == 3
    reading = window.read()
    assert (reading.steps, reading.nonfinite_steps, reading.measured_steps) == (1, 2, 0)
    width = len(statistics.scopes)
    assert parts[0].numel() == 3 * (width + 1) + len(MEASURED) * width


def test_a_window_that_fails_on_one_of_several_processes_keeps_its_place_in_every_sum(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Windows add up when they are full: the others wait for each of this process's, in the same order."""
    model = model_with_gradients()
    optimizer = OPTIMIZERS["sgd"](model)
    statistics = StepStatistics(optimizer, model)
    statistics._shards.sharded = True
    sums: list[int] = []
    windows = [statistics.window() for _ in range(2)]
    for window in windows:
        window._add_up = lambda part: (sums.append(part.numel()), part)[1]
    fold = Window._fold_gradients

    def fail_once(*args: Any) -> None:
        if len(sums) == 1:
            raise MemoryError("none left")
        fold(*args)

    monkeypatch.setattr("hf_pdyn.measure.windows._FOLD_AFTER", 2)
    monkeypatch.setattr(Window, "_fold_gradients", fail_once)
    with pytest.warns(UserWarning, match="MemoryError: none left") as said:
        consume(optimizer.step() for _ in range(4))
    assert len(said) == 1
    assert sums == [2 * (len(statistics.scopes) + 1)] * 4


def test_rows_that_cannot_be_put_together_are_sent_as_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[torch.Tensor] = []
    window = Window([Scope("weight")], lambda sums: (sent.append(sums), sums)[1])
    for _ in range(2):
        window.add(torch.ones(2, dtype=torch.float64), math.inf, None)

    concatenate, calls = torch.cat, []

    def fail_once(*args: Any) -> torch.Tensor:
        calls.append(args)
        if len(calls) == 1:
            raise MemoryError("none left")
        return concatenate(*args)

    monkeypatch.setattr(torch, "cat", fail_once)
    with pytest.warns(UserWarning, match="lost the statistics of 2 steps: none left"):
        window._fold()
    assert sent[0].isnan().tolist() == [True] * 4
    assert window.read().nonfinite_steps == 2


def test_measuring_leaves_the_state_as_it_is() -> None:
    model = model_with_gradients()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    statistics = StepStatistics(optimizer, model)
    window = statistics.window()
    statistics.measure_next_step()
    optimizer.step()
    assert window.read().measured_steps == 1
    assert not optimizer.state


def test_another_set_of_layers_does_not_continue_a_window() -> None:
    model = model_with_gradients()
    window = StepStatistics(OPTIMIZERS["sgd"](model), model).window()
    with pytest.raises(ValueError, match="statistics of 2 scopes, this run has 10"):
        window.load_state_dict(window.state_dict() | {"grad_norm": [1.0, 2.0]})


def test_a_loop_tells_how_it_clipped() -> None:
    """D_w and D_b are of gradients before torch's own clipping."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    statistics = StepStatistics.of(optimizer, model)
    window = statistics.window()
    expected = []
    for scale in (1.0, 100.0):
        model(torch.full((4, 3), scale)).square().sum().backward()
        expected.append([model.weight.grad.norm().item(), model.bias.grad.norm().item()])  # type: ignore[union-attr]
        statistics.note_clip(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        reading = window.read()
        found = [reading.weight_norm, reading.bias_norm]
        # torch divides by the norm + 1e-6 in float32.
        assert found == pytest.approx(expected[-1], rel=1e-5)
        clipped = [reading.grad_norm_clipped[Scope(pathway)] for pathway in ("weight", "bias_like")]
        assert math.hypot(*clipped) == pytest.approx(0.5, rel=1e-5)
