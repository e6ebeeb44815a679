"""Steps with NaN or infinity in a gradient: what `Padam(nonfinite=...)` does, against runs without them."""

import copy
import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import TrainerCallback

from hf_pdyn import NonfiniteCallback, Padam, PdynArguments, StepStatistics, TelemetryCallback
from hf_pdyn.callbacks.decay_gauges import TimeGauge
from hf_pdyn.optim.dispatch import StepDispatch
from hf_pdyn.optim.step_work import SUMS, StepSums
from hf_pdyn.policy.decay_targets import DecayTarget
from hf_pdyn.tensors import norms
from hf_pdyn.tensors.sharding import Piece
from tests.reference.padam_reference import PadamReference
from tests.training import arguments, trainer, training_logs

BAD = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
SHAPES = ((3, 4), (5,), (0,), ())


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def gradients(steps: int, dtype: torch.dtype = torch.float32) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [[torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES] for _ in range(steps)]


def run(
    grads: list[list[torch.Tensor]], *, on_device: bool = False, **options: Any
) -> tuple[list[nn.Parameter], Padam, list[bool]]:
    """on_device: decide as with capturable=True, which these parameters would have to be on a GPU for."""
    params = parameters(grads[0][0].dtype)
    optimizer = Padam(params, lr=0.05, weight_decay=0.1, **options)
    optimizer.capturable = on_device
    skipped = []
    for step in grads:
        for param, grad in zip(params, step, strict=True):
            param.grad = grad.clone()
        optimizer.step()
        assert (optimizer.found_inf is not None) == (on_device and optimizer.nonfinite == "skip")
        if optimizer.found_inf is not None:
            assert not optimizer.step_was_skipped
            skipped.append(bool(optimizer.found_inf))
        else:
            skipped.append(optimizer.step_was_skipped)
    return params, optimizer, skipped


VARIANTS: dict[str, dict[str, Any]] = {
    "p=.5": {},
    "matched": {"p": 0.25, "update_scale": "adam"},
    "coupled, amsgrad": {"p": 0.3, "decoupled_weight_decay": False, "amsgrad": True},
    "foreach": {"p": 0.3, "foreach": True},
    "8_16bit": {"p": 0.3, "state_dtype": "8_16bit", "amsgrad": True},
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("on_device", [False, True], ids=["the host decides", "the device decides"])
def test_a_skipped_step_is_absent_bit_for_bit(bad: str, variant: str, dtype: torch.dtype, on_device: bool) -> None:
    grads = gradients(5, dtype)
    poisoned = gradients(7, dtype)[5:]
    poisoned[0][1][2] = BAD[bad]
    poisoned[1][3].fill_(BAD[bad])
    params, optimizer, skipped = run(
        [poisoned[0], *grads[:3], poisoned[1], *grads[3:]],
        nonfinite="skip",
        on_device=on_device,
        **VARIANTS[variant],
    )
    expected_params, expected, _ = run(grads, on_device=on_device, **VARIANTS[variant])
    assert skipped == [True, False, False, False, True, False, False]
    for param, other in zip(params, expected_params, strict=True):
        assert torch.equal(param, other)
        state, expected_state = optimizer.state[param], expected.state[other]
        assert state.keys() == expected_state.keys()
        assert all(torch.equal(state[key], expected_state[key]) for key in state)
        assert state["step"].item() == 5


def test_skipping_follows_the_scalar_reference() -> None:
    """float64, one bad step among six. 1e-12: only the order of operations differs."""
    param = nn.Parameter(torch.linspace(0.5, 1.5, 6, dtype=torch.float64))
    reference = PadamReference(param.tolist(), lr=0.01, p=0.3, weight_decay=0.1, nonfinite="skip")
    optimizer = Padam([param], lr=0.01, p=0.3, weight_decay=0.1, nonfinite="skip")
    for i in range(6):
        grad = torch.linspace(-1, 1, 6, dtype=torch.float64) * (i + 1)
        if i == 3:
            grad[0] = math.inf
        reference.step(grad.tolist())
        param.grad = grad
        optimizer.step()
    torch.testing.assert_close(
        param.detach(), torch.tensor(reference.theta, dtype=torch.float64), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("bad", BAD)
def test_applying_loses_what_adamw_loses(bad: str) -> None:
    grads = gradients(4)
    grads[1][0][0, 2] = BAD[bad]
    params, optimizer, skipped = run(grads, p=0.5)
    stock = parameters()
    adamw = torch.optim.AdamW(stock, lr=0.05, weight_decay=0.1)
    for step in grads:
        for param, grad in zip(stock, step, strict=True):
            param.grad = grad.clone()
        adamw.step()
    assert not any(skipped)
    assert params[0].isnan().sum() == 1
    for param, other in zip(params, stock, strict=True):
        assert torch.equal(param.isnan(), other.isnan())
        torch.testing.assert_close(param, other, equal_nan=True, rtol=1e-5, atol=1e-6)
        assert optimizer.state[param]["step"] == adamw.state[other]["step"]


def test_corrections_of_a_step_that_the_device_skips_stay() -> None:
    grads = gradients(3, torch.bfloat16)
    grads[1][0][0, 0] = math.nan
    found, expected = (
        run(of, on_device=True, nonfinite="skip", weight_correction=True)[0] for of in (grads, [grads[0], grads[2]])
    )
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("measured", [False, True])
def test_statistics_count_a_step_that_the_device_skips_as_nonfinite(measured: bool) -> None:
    """And every quantity is that of the others."""
    readings = []
    for grads in (gradients(4), gradients(4)[:2] + gradients(4)[3:]):
        model = nn.ParameterList(parameters())
        optimizer = Padam(model.parameters(), lr=0.05, p=0.3, nonfinite="skip")
        optimizer.capturable = True
        if len(grads) == 4:
            grads[2][1].fill_(math.inf)
        statistics = StepStatistics(optimizer, model)
        window = statistics.window()
        for step in grads:
            for param, grad in zip(model, step, strict=True):
                param.grad = grad.clone()
            if measured:
                statistics.measure_next_step()
            optimizer.step()
        readings.append(window.read())
    skipping, without = readings
    assert (skipping.steps, skipping.nonfinite_steps) == (3, 1)
    assert skipping.measured_steps == without.measured_steps == (3 if measured else 0)
    assert skipping.grad_norm == without.grad_norm
    assert skipping.quantities == without.quantities


def test_a_plan_made_before_counts_were_on_the_device_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    param = nn.Parameter(torch.ones(100_000))
    optimizer = Padam([param], nonfinite="skip", fused=True)
    param.grad = torch.ones_like(param)
    optimizer.step()
    assert optimizer._plan is not None
    optimizer.capturable, told = True, []
    monkeypatch.setattr(StepDispatch, "step", lambda self, *arguments: told.append(arguments[-1]))
    param.grad[3] = math.nan
    optimizer.step()
    assert [bool(skip) for skip in told] == [True]


def test_a_t_leaves_out_what_the_device_skips() -> None:
    """As where the host decides: of 6 steps with decay, two are not finite."""
    found = []
    for on_device in (False, True):
        params = parameters()
        optimizer = Padam(params, lr=0.05, weight_decay=0.1, nonfinite="skip")
        optimizer.capturable = on_device
        for group in optimizer.param_groups:
            group["initial_weight_decay"] = group["weight_decay"]
        run = SimpleNamespace(optimizer=optimizer, model=None, lr_scheduler=None)
        gauge = TimeGauge(DecayTarget.parse("a_t=-9"), run, lambda optimizer=optimizer: optimizer.param_groups)
        for number, step in enumerate(gradients(6)):
            for param, grad in zip(params, step, strict=True):
                param.grad = grad.fill_(math.nan) if number in (0, 3) else grad
            optimizer.step()
            gauge.take_step()
        found.append(gauge.value)
    assert found[0] == found[1] < 0


def test_what_counts_as_nonfinite() -> None:
    cpu = torch.device("cpu")
    finite = [
        torch.empty(0),
        torch.full((4,), 3e38),  # its sum of squares overflows
        torch.full((2,), 1e300, dtype=torch.float64),
        torch.full((2,), 6e4, dtype=torch.float16),
    ]
    assert norms.holds_nonfinite(finite, cpu) == 0
    assert norms.holds_nonfinite([], cpu) == 0
    assert norms.holds_nonfinite([torch.empty(0)], cpu) == 0
    for bad in BAD.values():
        for dtype in (torch.float64, torch.float16, torch.bfloat16):
            assert norms.holds_nonfinite([*finite, torch.tensor([1.0, bad], dtype=dtype)], cpu) == 1


@pytest.mark.parametrize("part", [complex(math.nan, 1.0), complex(1.0, math.inf)])
def test_a_complex_gradient(part: complex) -> None:
    param = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    optimizer = Padam([param], nonfinite="skip")
    param.grad = torch.tensor([1.0, part], dtype=torch.complex64)
    optimizer.step()
    assert optimizer.step_was_skipped
    assert torch.equal(param.detach(), torch.ones(2, dtype=torch.complex64))


def test_sparse_gradients_are_still_refused_and_no_gradient_is_finite() -> None:
    embedding = nn.Embedding(10, 3, sparse=True)
    optimizer = Padam(embedding.parameters(), nonfinite="skip")
    optimizer.step()
    assert not optimizer.step_was_skipped
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()


def test_a_skipped_closure_still_returns_its_loss() -> None:
    param = nn.Parameter(torch.tensor([2.0]))
    optimizer = Padam([param], nonfinite="skip")

    def closure() -> torch.Tensor:
        param.grad = torch.tensor([math.nan])
        return torch.tensor(3.0)

    assert optimizer.step(closure).item() == 3.0
    assert param.item() == 2.0


def test_applying_reads_nothing_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Padam, "_any_nonfinite_gradient", lambda self: pytest.fail("looked at the gradients"))
    run(gradients(2))


def test_the_option_is_in_no_checkpoint_and_survives_copies() -> None:
    _, optimizer, _ = run(gradients(1), nonfinite="skip")
    assert "nonfinite" not in optimizer.param_groups[0]
    for duplicate in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert duplicate.nonfinite == "skip"
        for param in duplicate.param_groups[0]["params"]:
            param.grad = torch.full_like(param, math.nan)
        duplicate.step()
        assert duplicate.step_was_skipped
    _, saved, _ = run(gradients(1))
    optimizer.load_state_dict(saved.state_dict())
    assert optimizer.nonfinite == "skip"


def test_a_skipped_step_answers_no_request_and_leaves_none_to_the_next() -> None:
    param = nn.Parameter(torch.ones(2))
    optimizer = Padam([param], lr=0.1, weight_decay=0.0, nonfinite="skip")
    skipped, taken = (StepSums([Piece(param)], measure=True) for _ in range(2))
    for request, value in ((skipped, math.nan), (None, 1.0), (taken, 1.0)):
        param.grad = torch.full((2,), value)
        if request is not None:
            optimizer.sum_next_step(request)
        optimizer.step()
    assert skipped.rows is None
    assert taken.rows[0, SUMS.index("update_sq")].item() == pytest.approx(0.1**2 * 2)


def test_a_skipped_step_enters_no_window() -> None:
    model = nn.Linear(2, 2)
    optimizer = Padam(model.parameters(), nonfinite="skip")
    statistics = StepStatistics(optimizer, model)
    window = statistics.window()
    for value in (1.0, math.nan, 1.0):
        statistics.measure_next_step()
        for param in model.parameters():
            param.grad = torch.full_like(param, value)
        optimizer.step()
    assert len(window) == 2
    reading = window.read()
    assert (reading.steps, reading.nonfinite_steps, reading.measured_steps) == (2, 0, 2)
    assert reading.weight_norm == pytest.approx(2.0)


def test_bad_choices_are_refused() -> None:
    with pytest.raises(ValueError, match="nonfinite.*apply, skip.*'skp'.*'skip'"):
        Padam(parameters(), nonfinite="skp")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nonfinite.*apply, skip.*'ignore'"):
        NonfiniteCallback("ignore")  # type: ignore[arg-type]


def test_it_is_refused_where_no_process_sees_the_whole_gradient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_pdyn.callbacks.nonfinite.why_unreadable", lambda optimizer: "no ZeRO; use ZeRO-2")
    with pytest.raises(ValueError, match='"skip" must see all gradients: no ZeRO; use ZeRO-2, or leave nonfinite'):
        trainer(tmp_path, callbacks=[NonfiniteCallback("skip")]).train()


class Poison(TrainerCallback):
    """NaN in one element of one tensor's gradient, after clipping, before these steps."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step in self.steps:
            next(model.parameters()).grad[0, 0] = math.nan


def test_telemetry_of_skipped_steps(tmp_path: Path) -> None:
    """They count as skipped and as non-finite; a_t stands still. No step of the last record is taken."""
    run = trainer(
        tmp_path,
        optim_args="nonfinite=skip",
        weight_decay=0.1,
        lr_scheduler_type="constant",
        max_steps=6,
        callbacks=[TelemetryCallback(), Poison(1, 4, 5)],
    )
    run.train()
    logs = training_logs(run.state.log_history)
    assert [record["pdyn/skipped_steps"] for record in logs] == [1, 1, 3]
    assert [record["pdyn/nonfinite_steps"] for record in logs] == [1, 1, 3]
    assert [record["pdyn/a_t"] for record in logs] == pytest.approx([-1e-4, -3e-4, -3e-4])
    assert ["pdyn/D_w" in record for record in logs] == [True, True, False]
    assert {state["step"].item() for state in run.optimizer.state.values()} == {3.0}


def test_a_resumed_run_may_choose_anew(tmp_path: Path) -> None:
    """The run that blew up goes on from its checkpoint with --nonfinite skip."""
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 8}
    trainer(tmp_path, callbacks=[TelemetryCallback(), Poison(9)], **options).train()
    resumed = trainer(tmp_path, callbacks=[*PdynArguments(nonfinite="skip").callbacks(), Poison(9)], **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert all(param.isfinite().all() for param in resumed.model.parameters())
    assert training_logs(resumed.state.log_history)[-1]["pdyn/skipped_steps"] == 1


@pytest.mark.parametrize(("chosen", "survives"), [("skip", True), ("apply", False)])
def test_the_launcher_s_option_reaches_the_optimizer(tmp_path: Path, chosen: str, survives: bool) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import json, sys\n"
        "from tests.optim.test_nonfinite import Poison\n"
        "from tests.training import trainer, training_logs\n"
        "run = trainer(sys.argv[1], max_steps=4, callbacks=[Poison(2)])\n"
        "run.train()\n"
        "finite = all(param.isfinite().all().item() for param in run.model.parameters())\n"
        "print(json.dumps({'finite': finite, **training_logs(run.state.log_history)[-1]}))\n"
    )
    command = [sys.executable, "-m", "hf_pdyn", "--nonfinite", chosen, str(script), str(tmp_path)]
    root = Path(__file__).parents[2]
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, check=False
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout.splitlines()[-1])
    assert report["finite"] == survives
    assert (report["pdyn/skipped_steps"], report["pdyn/nonfinite_steps"]) == ((1, 1) if survives else (0, 2))


def test_the_option_is_refused_for_other_optimizers(tmp_path: Path) -> None:
    ours = PdynArguments(nonfinite="skip", telemetry="none")
    ours.check(arguments(tmp_path))
    with pytest.raises(ValueError, match="adamw_torch.*--optim padam"):
        ours.check(arguments(tmp_path, optim="adamw_torch"))
    run = trainer(tmp_path, optim="adamw_torch", callbacks=ours.callbacks())
    with pytest.raises(ValueError, match="AdamW.*--optim padam"):
        run.train()
    assert run.state.global_step == 0
    with pytest.raises(ValueError, match="nonfinite.*apply, skip.*'skp'"):
        PdynArguments(nonfinite="skp")


def test_the_setting_is_checked_wherever_it_is_set() -> None:
    optimizer = Padam([nn.Parameter(torch.ones(2))])
    with pytest.raises(ValueError, match="nonfinite.*apply, skip.*'leave'"):
        optimizer.nonfinite = "leave"  # type: ignore[assignment]
    assert optimizer.nonfinite == "apply"
    copied = pickle.loads(pickle.dumps(Padam([nn.Parameter(torch.ones(2))], nonfinite="skip")))
    assert copied.nonfinite == "skip"
