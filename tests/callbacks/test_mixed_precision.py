"""bf16, fp16 with a gradient scaler, and gradients that are NaN or infinite: what each does to the statistics."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from hf_pdyn import PControlCallback, StepStatistics, TelemetryCallback, WeightDecayShutoffCallback
from hf_pdyn.policy.algorithm1 import ControlConfig, ControlState, next_p
from tests.callbacks.test_schedule import Decays
from tests.callbacks.test_telemetry import Recorder
from tests.training import gpt2, saved_state, token_blocks, trainer, training_logs

CONFIG = ControlConfig(p_min=0.1, p_max=0.6, p_step=0.05, threshold=1.2)
BATCH = 8
BATCHES = 12
BAD_STEPS = (0, 4, 5, 9)

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "padam": {"optim_args": "p=0.5"},
    "padam p=.25 matched": {"optim_args": "p=0.25,update_scale=adam"},
    "adamw": {"optim": "adamw_torch"},
    "adamw fused": {"optim": "adamw_torch_fused"},
    "sgd": {"optim": "sgd"},
}


class InOrder(Trainer):
    """Batches in the order of the dataset, without those of `absent`."""

    absent: tuple[int, ...] = ()

    def get_train_dataloader(self) -> Any:
        blocks = token_blocks(BATCH * BATCHES)
        kept = [block for i, block in enumerate(blocks) if i // BATCH not in self.absent]
        return self.accelerator.prepare(DataLoader(kept, batch_size=BATCH))


class WithoutBadBatches(InOrder):
    absent = BAD_STEPS


class Scaled(InOrder):
    """A real gradient scaler. accelerate makes one for fp16 on accelerators only, so it is put in by hand.

    The forward pass stays in float32 (no autocast), where scaling by powers of two rounds nothing: whatever
    differs from a run without a scaler is a fault.
    """

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        accelerator = self.accelerator
        scaler = torch.amp.GradScaler(self.args.device.type, init_scale=2.0**10, growth_interval=2)
        accelerator.scaler = scaler

        def unscale_gradients(optimizer: Any = None) -> None:
            for wrapped in accelerator._optimizers:
                scaler.unscale_(wrapped.optimizer)

        accelerator.unscale_gradients = unscale_gradients


class Overflow(TrainerCallback):
    """One element of one gradient becomes this in the backward pass of these steps."""

    def __init__(self, value: float = math.inf, steps: tuple[int, ...] = BAD_STEPS) -> None:
        self.value, self.steps = value, steps

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        def poison(grad: torch.Tensor) -> torch.Tensor:
            if state.global_step not in self.steps:
                return grad
            grad = grad.clone()
            grad[0, 0] = self.value
            return grad

        self.hook = model.transformer.h[0].mlp.c_fc.weight.register_hook(poison)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.hook.remove()


class Exponents(TrainerCallback):
    def __init__(self) -> None:
        self.steps: list[Any] = []

    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        self.steps.append([group.get("p") for group in optimizer.param_groups])


class Result:
    """A finished training with everything on; decisions every 2 steps where there is a p."""

    def __init__(self, out: Path, trainer_class: type[Trainer], *others: TrainerCallback, **options: Any) -> None:
        self.exponents = Exponents()
        self.control = PControlCallback(CONFIG, interval=2) if options.get("optim", "padam") == "padam" else None
        callbacks = [TelemetryCallback(per_layer=True), self.exponents, *others]
        defaults: dict[str, Any] = {
            "max_steps": BATCHES - len(getattr(trainer_class, "absent", ())),
            "logging_steps": 1,
            "weight_decay": 0.1,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
        }
        self.run = trainer(
            out,
            trainer_class=trainer_class,
            callbacks=callbacks + ([self.control] if self.control else []),
            **(defaults | options),
        )
        self.run.train()
        self.logs = training_logs(self.run.state.log_history)
        self.weights = [param.detach() for param in self.run.model.parameters()]
        self.states = [self.run.optimizer.state[param] for param in self.run.model.parameters()]

    def of_steps_taken(self, bad: tuple[int, ...] = BAD_STEPS) -> list[dict[str, float]]:
        """What the plugin says of each step that was taken; counts of bad steps left out."""
        counts = ("pdyn/skipped_steps", "pdyn/nonfinite_steps")
        return [
            {name: value for name, value in record.items() if name.startswith("pdyn/") and name not in counts}
            for record in self.logs
            if record["step"] - 1 not in bad
        ]


def assert_equal_training(ours: Result, expected: Result) -> None:
    for a, b in zip(ours.weights, expected.weights, strict=True):
        assert torch.equal(a, b)
    for state, expected_state in zip(ours.states, expected.states, strict=True):
        assert state.keys() == expected_state.keys()
        assert all(torch.equal(state[name], value) for name, value in expected_state.items() if value is not None)
    assert ours.of_steps_taken() == expected.of_steps_taken(())
    taken = [p for step, p in enumerate(ours.exponents.steps) if step not in BAD_STEPS]
    assert taken == expected.exponents.steps
    if ours.control is not None:
        assert expected.control is not None
        assert ours.control._state == expected.control._state
        assert ours.control._state.interval == (BATCHES - len(BAD_STEPS)) // 2
        assert len({p for step in taken for p in step}) > 1  # there was something to compare


def assert_overflows_leave_no_trace(tmp_path: Path, name: str, **others: Any) -> None:
    """Bit for bit against a run without scaler that never sees the bad batches; see `Scaled`."""
    options = OPTIMIZERS[name] | others
    scaled = Result(tmp_path, Scaled, Overflow(), **options)
    assert scaled.run.accelerator.scaler.get_scale() != 2.0**10
    assert_equal_training(scaled, Result(tmp_path, WithoutBadBatches, **options))
    skipped = [record.get("pdyn/skipped_steps") for record in scaled.logs]
    assert skipped == [sum(bad <= step for bad in BAD_STEPS) for step in range(BATCHES)]
    # A fused optimizer is given the step and skips it on the device: there it is seen, and left out.
    fused = name == "adamw fused"
    assert [record["pdyn/nonfinite_steps"] for record in scaled.logs] == (skipped if fused else [0] * BATCHES)


@pytest.mark.filterwarnings("ignore:Seems like `optimizer.step\\(\\)` has been overridden:UserWarning")
@pytest.mark.parametrize("max_grad_norm", [0.0, 0.05])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_overflows_under_a_gradient_scaler_are_as_if_they_had_not_been(
    tmp_path: Path, name: str, max_grad_norm: float
) -> None:
    assert_overflows_leave_no_trace(tmp_path, name, max_grad_norm=max_grad_norm)


@pytest.mark.filterwarnings("ignore:Seems like `optimizer.step\\(\\)` has been overridden:UserWarning")
def test_skips_on_the_device_survive_a_checkpoint(tmp_path: Path) -> None:
    """The flags of steps not yet logged are read when a checkpoint is due."""
    options = OPTIMIZERS["adamw fused"] | {"logging_steps": 12, "save_strategy": "steps", "save_steps": 6}
    Result(tmp_path, Scaled, Overflow(), **options)
    telemetry = saved_state(tmp_path / "checkpoint-6")["stateful_callbacks"]["pdyn"]["telemetry"]
    assert telemetry["skipped_steps"] == 3
    assert telemetry["cumulative_decay"][""] == pytest.approx(-3 * 1e-2 * 0.1)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_bf16_autocast(tmp_path: Path, name: str) -> None:
    """Parameters, gradients and states are float32; the norms are those measured by hand, to 1e-5 (float32 sums)."""
    model = gpt2()
    recorder = Recorder(model)
    options = OPTIMIZERS[name] | {"bf16": True, "max_grad_norm": 0.0, "logging_steps": 1, "max_steps": 4}
    run = trainer(tmp_path, model, callbacks=[TelemetryCallback(), recorder], **options)
    run.train()
    plain = trainer(tmp_path, callbacks=[TelemetryCallback()], **(options | {"bf16": False}))
    plain.train()
    logs = training_logs(run.state.log_history)
    assert logs[0]["loss"] != training_logs(plain.state.log_history)[0]["loss"]  # autocast is on
    for step, record in enumerate(logs):
        for letter, pathway in (("w", "weight"), ("b", "bias_like")):
            gradients = recorder.norms(recorder.gradients, pathway)
            assert record[f"pdyn/D_{letter}"] == pytest.approx(gradients[step], rel=1e-5)
            update = recorder.norms(recorder.updates, pathway)[step]
            assert record[f"pdyn/update_norm/{pathway}"] == pytest.approx(update, rel=1e-3)
    for param in model.parameters():
        assert param.dtype == torch.float32
        floats = [v for v in run.optimizer.state[param].values() if isinstance(v, torch.Tensor)]
        assert all(value.dtype == torch.float32 for value in floats)


def test_pure_bf16_parameters(tmp_path: Path) -> None:
    """Norms of bf16 gradients are summed in float32: equal to those of the gradients in float64 to 1e-5."""
    model = gpt2().to(torch.bfloat16)
    recorder = Recorder(model)
    run = trainer(
        tmp_path, model, max_grad_norm=0.0, logging_steps=1, max_steps=4, callbacks=[TelemetryCallback(), recorder]
    )
    run.train()
    for step, record in enumerate(training_logs(run.state.log_history)):
        for letter, pathway in (("w", "weight"), ("b", "bias_like")):
            gradients = recorder.norms(recorder.gradients, pathway)
            assert record[f"pdyn/D_{letter}"] == pytest.approx(gradients[step], rel=1e-5)
    for param in model.parameters():
        assert param.dtype == torch.bfloat16
        state = run.optimizer.state[param]
        assert {state[name].dtype for name in ("exp_avg", "exp_avg_sq")} == {torch.float32}


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.05])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["padam", "padam p=.25 matched"])
def test_skipping_without_a_scaler_is_as_if_the_batch_were_absent(
    tmp_path: Path, name: str, value: float, max_grad_norm: float
) -> None:
    options = OPTIMIZERS[name] | {"max_grad_norm": max_grad_norm}
    args = {**options, "optim_args": options["optim_args"] + ",nonfinite=skip"}
    skipping = Result(tmp_path, InOrder, Overflow(value), **args)
    assert_equal_training(skipping, Result(tmp_path, WithoutBadBatches, **options))
    counts = [sum(bad <= step for bad in BAD_STEPS) for step in range(BATCHES)]
    assert [record["pdyn/skipped_steps"] for record in skipping.logs] == counts
    assert [record["pdyn/nonfinite_steps"] for record in skipping.logs] == counts


class PoisonAfterClipping(TrainerCallback):
    """Clipping multiplies every gradient by the NaN of one; here the others stay as they are."""

    def __init__(self, value: float, step: int) -> None:
        self.value, self.step = value, step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == self.step:
            model.transformer.h[0].mlp.c_fc.weight.grad[0, 0] = self.value


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_applying_without_a_scaler_is_what_adamw_does(tmp_path: Path, value: float) -> None:
    """A bad last step: its statistics are left out, the weights are lost where AdamW loses them."""
    options = {"max_grad_norm": 0.0, "logging_steps": 4}
    last = BATCHES - 1
    ours = Result(tmp_path, InOrder, PoisonAfterClipping(value, last), **OPTIMIZERS["padam"], **options)
    stock = Result(tmp_path, InOrder, PoisonAfterClipping(value, last), **OPTIMIZERS["adamw"], **options)
    clean = Result(tmp_path, InOrder, **OPTIMIZERS["padam"], **(options | {"max_steps": last}))

    assert sum(int(param.isnan().sum()) for param in ours.weights) == 1
    for a, b in zip(ours.weights, stock.weights, strict=True):
        assert torch.equal(a.isnan(), b.isnan())
    record, final = ours.logs[-1], clean.run.state.log_history[-1]  # the steps before the bad one
    assert (record["pdyn/nonfinite_steps"], record["pdyn/skipped_steps"]) == (1, 0)
    assert (record["pdyn/D_w"], record["pdyn/D_b"]) == (final["pdyn/D_w"], final["pdyn/D_b"])


def test_a_bad_step_s_numbers_do_not_decide(tmp_path: Path) -> None:
    """A module that no output depends on gets the bad gradient, so the training itself goes on."""

    class Aside(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if state.global_step == 4:
                model.aside.weight.grad = torch.full_like(model.aside.weight, math.inf)

    model = gpt2()
    model.aside = torch.nn.Linear(2, 2)
    result = Result(tmp_path, InOrder, Aside(), model=model, logging_steps=2, max_grad_norm=0.0)
    single = Result(tmp_path, InOrder, logging_steps=1, max_grad_norm=0.0)
    assert result.logs[-1]["pdyn/nonfinite_steps"] == 1
    # p is the same until the decision after steps 4 and 5, of which only step 5 is finite.
    assert result.logs[2]["pdyn/D_w"] == single.logs[5]["pdyn/D_w"]
    state = ControlState(p=0.5)
    for record in result.logs:
        state = next_p(state, weight_norm=record["pdyn/D_w"], bias_norm=record["pdyn/D_b"], config=CONFIG)
        assert record["pdyn/control/p"] == state.p
    assert state.interval == BATCHES // 2


def assert_a_fused_optimizer_unscales(optimizer_class: type[torch.optim.Optimizer], device: str = "cpu") -> None:
    """It is given scaled gradients where nobody unscaled them before, and writes the unscaled ones back."""
    norms, ones = [], []
    for scale in (1.0, 2.0**12):
        model = gpt2().to(device)
        optimizer = optimizer_class(model.parameters(), lr=0.1, fused=True)
        statistics = StepStatistics(optimizer, model)
        window = statistics.window()
        scaler = torch.amp.GradScaler(device, init_scale=scale)
        tokens = torch.arange(12, device=device)[None]
        scaler.scale(model(input_ids=tokens, labels=tokens).loss).backward()
        statistics.measure_next_step()
        scaler.step(optimizer)
        reading = window.read()
        norms.append((reading.weight_norm, reading.bias_norm, dict(reading.grad_norm_clipped)))
        ones.append(reading.quantities["one_norm"])
    assert norms[0] == norms[1]
    assert norms[0][0] > 0
    assert ones[0] == ones[1]


@pytest.mark.parametrize("optimizer_class", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad])
def test_a_fused_optimizer_unscales_before_statistics_are_taken(optimizer_class: type[torch.optim.Optimizer]) -> None:
    assert_a_fused_optimizer_unscales(optimizer_class)


@pytest.mark.filterwarnings("ignore:Seems like `optimizer.step\\(\\)` has been overridden:UserWarning")
@pytest.mark.parametrize("name", ["padam", "adamw", "adamw fused"])
def test_skipped_steps_bring_a_t_no_nearer_to_a_target(tmp_path: Path, name: str) -> None:
    """A fused optimizer skips on the device, and is asked only where a_t may have come down."""
    decays = Decays()
    options = OPTIMIZERS[name] | {"learning_rate": 1e-2, "lr_scheduler_type": "constant", "weight_decay": 0.1}
    callbacks = [Overflow(), WeightDecayShutoffCallback("a_t=-0.005"), decays]
    trainer(tmp_path, trainer_class=Scaled, callbacks=callbacks, **options).train()
    taken = [step for step in range(BATCHES) if step not in BAD_STEPS]
    off_from = taken[5 - 1] + 1
    assert [max(step) for step in decays.steps] == [0.1] * off_from + [0.0] * (BATCHES - off_from)
