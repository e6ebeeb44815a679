"""When a step is fused, and what a user hears where it cannot be."""

import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from hf_pdyn import Padam, StepStatistics
from hf_pdyn.optim.clipping import note_clip
from hf_pdyn.optim.fused import availability, cpu, self_check
from hf_pdyn.optim.step_work import STEP_SUMS, StepSums, Task
from hf_pdyn.tensors.sharding import Piece


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What was asked for, of a compiler that fails."""
    asked: list[str] = []

    def prepare() -> None:
        asked.append("cpu")
        raise OSError("no compiler\nhere")

    monkeypatch.setattr(cpu, "prepare", prepare)
    availability._failure.cache_clear()
    availability.warn_once.cache_clear()
    yield asked
    availability._failure.cache_clear()
    availability.warn_once.cache_clear()


def step(numel: int, **options: Any) -> torch.Tensor:
    param = nn.Parameter(torch.ones(numel))
    param.grad = torch.ones(numel)
    Padam([param], p=0.3, **options).step()
    return param.detach()


def test_small_tensors_compile_nothing(compiler: list[str]) -> None:
    step(availability.WORTH_COMPILING - 1)
    assert compiler == []


@pytest.mark.parametrize("options", [{"fused": False}, {"foreach": True}, {"foreach": False}], ids=str)
def test_who_chooses_another_path_compiles_nothing(compiler: list[str], options: dict[str, Any]) -> None:
    step(availability.WORTH_COMPILING, **options)
    assert compiler == []


def test_without_a_compiler_there_is_one_warning_and_the_tensor_step(compiler: list[str]) -> None:
    numel = availability.WORTH_COMPILING
    with pytest.warns(
        UserWarning, match=r"could not be compiled, which needs a C\+\+ compiler.*: no compiler here\. fused=F"
    ):
        moved = step(numel)
    assert torch.equal(moved, step(numel, fused=False))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(numel)
    assert compiler == ["cpu"]


def test_who_insists_hears_why_not(compiler: list[str]) -> None:
    with pytest.raises(RuntimeError, match="could not be compiled, which needs a C.*: no compiler here"):
        step(3, fused=True)


def test_elsewhere_than_on_linux_nothing_is_tried(compiler: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    step(availability.WORTH_COMPILING)
    assert compiler == []
    with pytest.raises(ValueError, match="on CPUs it is built on Linux only, this is win32"):
        step(3, fused=True)


def test_large_tensors_take_the_fused_step_whatever_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    step(availability.WORTH_COMPILING)  # the kernel has proved itself in this process
    calls: list[int] = []
    advance = cpu.advance
    monkeypatch.setattr(
        cpu, "advance", lambda updates, *args, **kwargs: calls.append(len(updates)) or advance(updates, *args, **kwargs)
    )
    step(availability.WORTH_COMPILING)
    assert calls == [1]
    optimizer = Padam([nn.Parameter(torch.ones(n)) for n in (availability.WORTH_COMPILING, 3)])
    small = optimizer.param_groups[0]["params"][1]
    small.grad = torch.ones(3)
    optimizer.step()  # by what the optimizer steps, not by what has a gradient
    assert calls == [1, 1]


def test_nothing_is_compiled_or_loaded_when_hyper_parameters_move(monkeypatch: pytest.MonkeyPatch) -> None:
    param = nn.Parameter(torch.ones(100))
    optimizer = Padam([param], lr=1e-3, p=0.3, fused=True)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("compiled or loaded again")

    for step in range(6):
        param.grad = torch.ones(100)
        optimizer.step()
        monkeypatch.setattr("torch.utils.cpp_extension.load", fail)
        monkeypatch.setattr("ctypes.CDLL", fail)
        group = optimizer.param_groups[0]
        group.update(p=0.3 + 0.05 * step, lr=1e-3 * step, weight_decay=0.1 * (step % 2), amsgrad=step > 3)
    assert optimizer.state[param]["step"] == 6


def test_a_missing_compiler_is_no_failure_of_a_real_process(tmp_path: Any) -> None:
    """The whole way, through torch's loader: neither ninja nor a compiler, in an empty cache."""
    script = textwrap.dedent(
        f"""
        import os, warnings, torch
        from hf_pdyn import Padam
        os.environ.update(PATH={str(tmp_path)!r}, TORCH_EXTENSIONS_DIR={str(tmp_path)!r}, CXX="/no/such/compiler")
        param = torch.nn.Parameter(torch.ones({availability.WORTH_COMPILING}))
        param.grad = torch.ones_like(param)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            Padam([param], lr=0.5, weight_decay=0.0).step()
        found = [str(w.message) for w in caught if "could not be compiled" in str(w.message)]
        assert "This run takes the tensor step" in found[0]
        print(len(found), param[0].item())
        """
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["1", "0.5"]
    assert [path.name for path in (tmp_path / "hf_pdyn").iterdir()] == []


def stepped(numel: int = availability.WORTH_COMPILING, **options: Any) -> tuple[nn.Parameter, Padam]:
    param = nn.Parameter(torch.ones(numel))
    optimizer = Padam([param], p=0.3, **options)
    param.grad = torch.ones(numel)
    optimizer.step()
    return param, optimizer


def test_moments_of_another_size_are_never_written_through() -> None:
    """As after resuming with an embedding that was resized: torch's own error, as of any optimizer."""
    param, optimizer = stepped()
    param.data = torch.ones(2 * availability.WORTH_COMPILING)
    param.grad = torch.ones(2 * availability.WORTH_COMPILING)
    with pytest.raises(RuntimeError, match="size"):
        optimizer.step()


def test_moments_of_another_dtype_take_the_tensor_step() -> None:
    param, optimizer = stepped()
    optimizer.state[param]["exp_avg_sq"] = optimizer.state[param]["exp_avg_sq"].bfloat16()
    optimizer.step()
    assert param.isfinite().all()


def test_a_model_may_move_to_another_device_between_steps() -> None:
    """With its state, as AdamW allows; the meta device stands for one that has no kernel."""
    param, optimizer = stepped()
    moved = nn.Parameter(param.detach().to("meta"))
    moved.grad = torch.ones(availability.WORTH_COMPILING, device="meta")
    state = optimizer.state.pop(param)
    optimizer.state[moved] = {name: value if name == "step" else value.to("meta") for name, value in state.items()}
    optimizer.param_groups[0]["params"][0] = moved
    optimizer.step()
    assert optimizer.state[moved]["step"] == 2


class Wrapped(torch.Tensor):
    """A tensor subclass; some keep their elements elsewhere."""


def test_tensor_subclasses_take_the_tensor_step() -> None:
    values = torch.ones(availability.WORTH_COMPILING).as_subclass(Wrapped)
    param = nn.Parameter(values)
    param.grad = torch.ones(availability.WORTH_COMPILING)
    Padam([param], lr=0.5, p=0.3, weight_decay=0.0).step()
    assert param[0].item() == pytest.approx(0.5)
    with pytest.raises(ValueError, match="got a parameter that is a Wrapped"):
        Padam([param], fused=True)


@pytest.mark.parametrize("fused", [True, False])
def test_autograd_learns_that_parameters_changed(fused: bool) -> None:
    param = nn.Parameter(torch.ones(3))
    optimizer = Padam([param], fused=fused)
    loss = param.square().sum()
    param.grad = torch.ones(3)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_measured_step_survives_an_infinite_norm() -> None:
    model = nn.Linear(300, 300)
    optimizer = Padam(model.parameters(), fused=True)
    statistics = StepStatistics(optimizer, model)
    window = statistics.window()
    for value in (torch.inf, 1.0):
        for param in model.parameters():
            param.grad = torch.full_like(param, value)
        total = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        note_clip(optimizer, total, 1.0)
        statistics.measure_next_step()
        optimizer.step()
        if value == torch.inf:
            for param in model.parameters():
                param.data.fill_(1.0)
                optimizer.state.pop(param)
    reading = window.read()
    assert (reading.steps, reading.nonfinite_steps) == (1, 1)


def test_a_failing_sum_ends_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(3, 3)
    optimizer = Padam(model.parameters(), fused=True)
    window = StepStatistics(optimizer, model).window()

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("sums are broken")

    monkeypatch.setattr("hf_pdyn.optim.dispatch._answer", fail)
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    with pytest.warns(UserWarning, match="sums are broken"):
        optimizer.step()
    assert len(window) == 0


@pytest.fixture
def unchecked() -> Iterator[None]:
    """No kernel has proved itself so far, nor has a warning been given."""
    known = dict(availability._checks)
    availability._checks.clear()
    availability.warn_once.cache_clear()
    yield
    availability._checks.clear()
    availability._checks.update(known)
    availability.warn_once.cache_clear()


def wrong(column: str) -> Callable[..., torch.Tensor]:
    """A kernel that is off by 1e-4 in one of the things that it computes."""
    advance = cpu.advance

    def advance_wrongly(updates: Any, tasks: Task, **options: Any) -> torch.Tensor:
        sums = advance(updates, tasks, **options)
        for update in updates:
            if column in ("theta", "exp_avg", "exp_avg_sq"):
                getattr(update, column).mul_(1 + 1e-4)
        if column in STEP_SUMS:
            sums[:, STEP_SUMS.index(column)] *= 1 + 1e-4
        return sums

    return advance_wrongly


WRONG = ["theta", "exp_avg", "exp_avg_sq", "grad_sq"]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("column", WRONG)
def test_a_wrong_kernel_is_one_warning_and_the_tensor_step(column: str, monkeypatch: pytest.MonkeyPatch) -> None:
    numel = availability.WORTH_COMPILING
    monkeypatch.setattr(cpu, "advance", wrong(column))
    params = [nn.Parameter(torch.ones(numel))], [nn.Parameter(torch.ones(numel))]
    ours, expected = (Padam(own, p=0.3, fused=fused) for own, fused in zip(params, (None, False), strict=True))
    for optimizer, (param,) in zip((ours, expected), params, strict=True):
        optimizer.sum_next_step(StepSums([Piece(param)], measure=False))
        param.grad = torch.ones(numel)
    with pytest.warns(UserWarning, match=rf"disagrees with the tensor step: .*{column}.* off by \d\.\de-0[45]"):
        ours.step()
    expected.step()
    assert torch.equal(params[0][0], params[1][0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(numel)  # said once in a process


@pytest.mark.usefixtures("unchecked")
def test_who_insists_hears_of_a_wrong_kernel_before_anything_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "advance", wrong("theta"))
    param = nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    with pytest.raises(RuntimeError, match=r"theta of torch\.float32 parameters is off .* Leave fused at None"):
        Padam([param], p=0.3, fused=True).step()
    assert torch.equal(param.detach(), torch.ones(3))


@pytest.mark.usefixtures("unchecked")
def test_a_kernel_proves_itself_once_and_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    disagreement = self_check.disagreement
    monkeypatch.setattr(
        self_check, "disagreement", lambda *args, **kwargs: asked.append(args[1]) or disagreement(*args, **kwargs)
    )
    before = torch.get_rng_state()
    for _ in range(2):
        step(availability.WORTH_COMPILING)
    assert len(asked) == 1
    assert torch.equal(before, torch.get_rng_state())
