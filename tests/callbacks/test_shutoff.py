"""Weight decay switched off at a moment, or once a_t or a ratio of norms has come down to a target."""

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState

from hf_pdyn import SpectralCallback, TelemetryCallback, WeightDecayShutoffCallback
from hf_pdyn.callbacks.base import TrainingRun
from hf_pdyn.run_dir.tables import LAYERS, read_table
from tests.callbacks.test_schedule import Decays
from tests.synchronisation import meta_guard
from tests.training import arguments, gpt2, saved_state, trainer, training_logs


@pytest.mark.parametrize("optim", ["padam", "adamw_torch_fused", "sgd"])
@pytest.mark.parametrize("at", ["0.5", 0.5, 6, "epoch:0.75"])
def test_shutoff(tmp_path: Path, optim: str, at: str) -> None:
    decays = Decays()
    run = trainer(tmp_path, optim=optim, weight_decay=0.1, callbacks=[WeightDecayShutoffCallback(at), decays])
    run.train()
    assert [max(step) for step in decays.steps] == [0.1] * 6 + [0.0] * 6
    assert max(group["initial_weight_decay"] for group in run.optimizer.param_groups) == 0.1


def test_shutoff_of_chosen_labels_and_back_on(tmp_path: Path) -> None:
    seen: list[tuple[float, float]] = []

    class Record(TrainerCallback):
        def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
            by_label = {(g["pathway"], g["component"]): g["weight_decay"] for g in optimizer.param_groups}
            seen.append((by_label["weight", "attention"], by_label["weight", "mlp"]))

    run = trainer(
        tmp_path,
        weight_decay=0.1,
        max_steps=6,
        callbacks=[WeightDecayShutoffCallback("2", until="4", labels=["attention"]), Record()],
    )
    run.train()
    assert seen == [(0.1, 0.1)] * 2 + [(0.0, 0.1)] * 2 + [(0.1, 0.1)] * 2


def test_shutoff_starts_anew_with_every_training(tmp_path: Path) -> None:
    decays = Decays()
    run = trainer(tmp_path, weight_decay=0.1, max_steps=4, callbacks=[WeightDecayShutoffCallback("2"), decays])
    run.train()
    run.train()
    assert [max(step) for step in decays.steps] == [0.1, 0.1, 0.0, 0.0] * 2


# Targets. A step adds -0.1 to a_t. K^T Q's ratio falls from 2.9 over 2.19 (after 6 steps), 2.05 (8), 1.91 (10) to 1.7;
# with transformers 5.2, which has the batches in another order, over 2.32, 2.05, 1.84 to 1.7.
FALLING: dict[str, Any] = {
    "max_steps": 16,
    "logging_steps": 4,
    "learning_rate": 1e-2,
    "weight_decay": 10.0,
    "lr_scheduler_type": "constant",
}
REACHED_AT = {
    "a_t=-0.6": 6,
    "a_t=-0.8": 8,
    "a_t=-0.95": 10,
    "attention/nuc_over_fro=2.4": 6,
    "attention/nuc_over_fro=2.1": 8,
    "attention/nuc_over_fro=2": 10,
}


def following(at: Any, *others: TrainerCallback, **options: Any) -> list[TrainerCallback]:
    return [WeightDecayShutoffCallback(at, **options), SpectralCallback(2), TelemetryCallback(), *others]


def switches(run: Trainer) -> dict[int, dict[str, float]]:
    """What log records say of a shutoff, by their step."""
    found = {
        record["step"]: {name: value for name, value in record.items() if name.startswith("pdyn/wd_off/")}
        for record in run.state.log_history
    }
    return {step: said for step, said in found.items() if said}


@pytest.mark.parametrize(("at", "reached_at"), REACHED_AT.items())
def test_a_target(tmp_path: Path, at: str, reached_at: int, caplog: pytest.LogCaptureFixture) -> None:
    decays = Decays()
    run = trainer(tmp_path, callbacks=following(at, decays), **FALLING)
    with caplog.at_level(logging.INFO, "hf_pdyn.callbacks.shutoff"):
        run.train()
    assert [max(step) for step in decays.steps] == [10.0] * reached_at + [0.0] * (16 - reached_at)
    quantity = at.split("=")[0]
    # A ratio is looked at when its step's record is written already.
    (recorded, said), *more = switches(run).items()
    assert not more and recorded == (reached_at + 3 if quantity == "a_t" else reached_at + 4) // 4 * 4
    assert said.keys() == {"pdyn/wd_off/step", f"pdyn/wd_off/{quantity}"} and said["pdyn/wd_off/step"] == reached_at
    if quantity == "a_t":
        assert said["pdyn/wd_off/a_t"] == training_logs(run.state.log_history)[-1]["pdyn/a_t"]
    else:
        assert said[f"pdyn/wd_off/{quantity}"] == ratio_at(tmp_path, reached_at)
    value = said[f"pdyn/wd_off/{quantity}"]
    message = f"step {reached_at}: weight decay is off, as {quantity} came to {value:.6g} at step {reached_at} ({at})"
    assert [record.getMessage() for record in caplog.records] == [message]


def ratio_at(run_dir: Path, step: int) -> float:
    rows = [row for row in read_table(run_dir, LAYERS)[0].to_pylist() if row["step"] == step]
    norms = {name: sum(r["value"] for r in rows if (r["part"], r["name"]) == ("attention", name)) for name in NORMS}
    return norms["nuclear"] / norms["frobenius"]


NORMS = ("nuclear", "frobenius")


@pytest.mark.parametrize("restore", [False, True])
@pytest.mark.parametrize("at", REACHED_AT)
def test_a_resumed_run_switches_off_where_the_uninterrupted_one_does(tmp_path: Path, at: str, restore: bool) -> None:
    """Bit for bit, from a checkpoint before the target, of the step that reaches it, and behind it."""
    options = FALLING | {"save_strategy": "steps", "save_steps": 8, "restore_callback_states_from_checkpoint": restore}
    straight = trainer(tmp_path / "straight", callbacks=following(at), **options)
    straight.train()
    shutil.copytree(tmp_path / "straight" / "checkpoint-8", tmp_path / "resumed" / "checkpoint-8")
    decays = Decays()
    resumed = trainer(tmp_path / "resumed", callbacks=following(at, decays), **options)
    resumed.train(resume_from_checkpoint=True)
    reached_at = REACHED_AT[at]
    assert [max(step) for step in decays.steps] == [10.0] * (reached_at - 8) + [0.0] * (16 - max(reached_at, 8))
    assert training_logs(resumed.state.log_history) == training_logs(straight.state.log_history)
    for a, b in zip(resumed.model.parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(a, b)
    for folder in ("resumed", "straight"):
        memory = saved_state(tmp_path / folder / "checkpoint-16")["stateful_callbacks"]["pdyn"]["shutoff"]
        assert memory["approach"]["reached_at"] == reached_at


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "sgd"])
def test_a_t_of_any_optimizer(tmp_path: Path, optim: str) -> None:
    decays = Decays()
    run = trainer(tmp_path, optim=optim, callbacks=[WeightDecayShutoffCallback("a_t=-0.45"), decays], **FALLING)
    run.train()
    assert [max(step) for step in decays.steps] == [10.0] * 5 + [0.0] * 11
    assert switches(run)[8]["pdyn/wd_off/a_t"] == pytest.approx(-0.5)


def test_a_t_of_sgd_counts_its_momentum(tmp_path: Path) -> None:
    model, decays = gpt2(), Decays()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    shutoff = WeightDecayShutoffCallback("a_t=-0.005")  # 10 * lr * weight_decay = 0.001 a step
    trainer(tmp_path, model, optimizers=(optimizer, schedule), callbacks=[shutoff, decays]).train()
    assert [step[0] for step in decays.steps] == [0.1] * 5 + [0.0] * 7


def test_a_t_is_that_of_the_chosen_groups(tmp_path: Path) -> None:
    """Attention decays at a fifth of the others' rate, so its a_t takes five times as long."""
    seen: list[tuple[float, float]] = []

    class Record(TrainerCallback):
        def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
            by_label = {(g["pathway"], g["component"]): g["weight_decay"] for g in optimizer.param_groups}
            seen.append((by_label["weight", "attention"], by_label["weight", "mlp"]))

    callbacks = [WeightDecayShutoffCallback("a_t=-0.1", labels=["attention"]), Record()]
    trainer(tmp_path, optim_args="weight_decay.attention=2", callbacks=callbacks, **FALLING).train()
    assert seen == [(2.0, 10.0)] * 5 + [(0.0, 10.0)] * 11


def test_decay_returns_at_its_moment_reached_or_not(tmp_path: Path) -> None:
    for until, expected in (("9", [10.0] * 6 + [0.0] * 3 + [10.0] * 7), ("6", None)):
        decays = Decays()
        run = trainer(tmp_path, callbacks=[WeightDecayShutoffCallback("a_t=-0.6", until), decays], **FALLING)
        run.train()
        assert [max(step) for step in decays.steps] == (expected or [10.0] * 16)


def test_a_second_training_waits_for_the_target_anew(tmp_path: Path) -> None:
    decays = Decays()
    run = trainer(tmp_path, callbacks=following("a_t=-0.6", decays), **FALLING)
    run.train()
    run.train()
    assert [max(step) for step in decays.steps] == ([10.0] * 6 + [0.0] * 10) * 2


def test_a_target_that_is_not_reached_is_told_at_the_end(tmp_path: Path) -> None:
    callbacks = following("attention/nuc_over_fro=1.2")
    with pytest.warns(UserWarning, match=r"never switched off: attention/nuc_over_fro did not .*1\.2, it was 1\.[67]"):
        trainer(tmp_path, callbacks=callbacks, **FALLING).train()
    model = gpt2()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)  # whose plan is not known
    run = trainer(tmp_path, model, optimizers=(optimizer, schedule), callbacks=[WeightDecayShutoffCallback("a_t=-1")])
    with pytest.warns(UserWarning, match=r"a_t did not fall to a_t=-1, it was -0\.0012 at last"):
        run.train()


def test_a_learning_rate_on_the_host_is_all_that_a_step_reads(tmp_path: Path) -> None:
    """With parameters on a device. A rate that stands there too is read at every step: nothing else tells it."""
    model = gpt2().to("meta")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    shutoff = WeightDecayShutoffCallback("a_t=-0.01")
    shutoff.run = TrainingRun(optimizer, model, total_steps=12, steps_per_epoch=8)
    state = TrainerState()
    shutoff._training = state
    vars(state)["_pdyn_claims"] = {}
    shutoff.begin(arguments(tmp_path), state)
    with meta_guard():
        shutoff.on_optimizer_step(arguments(tmp_path), state, TrainerControl())
    assert shutoff._time is not None and shutoff._time.value == pytest.approx(-1e-4)


@pytest.mark.parametrize(
    ("callback", "options", "message"),
    [
        (lambda: WeightDecayShutoffCallback("12"), {"weight_decay": 0.1}, "step 12, but training ends after step 12"),
        (lambda: WeightDecayShutoffCallback("epoch:9"), {"weight_decay": 0.1}, "epoch:9, which is step 72"),
        (lambda: WeightDecayShutoffCallback("0.5"), {}, "0 in every group that would be switched off"),
        (
            lambda: WeightDecayShutoffCallback("6", until="3"),
            {"weight_decay": 0.1},
            "must return after it was switched off",
        ),
        (lambda: WeightDecayShutoffCallback("0.5", labels=["norm"]), {"weight_decay": 0.1}, "0 in every group"),
        (
            lambda: WeightDecayShutoffCallback("0.5", labels=["bias_like"]),
            {"weight_decay": 0.1},
            "weight_decay=0.1 to no bias and no norm.*weight_decay.bias_like=0.1",
        ),
        (lambda: WeightDecayShutoffCallback("a_t=0.05"), {}, "must be negative, got 0.05"),
        (lambda: WeightDecayShutoffCallback("a_t=-0.05"), {}, "0 in every group that would be switched off"),
        (
            lambda: WeightDecayShutoffCallback("a_t=-0.05", until="0"),
            {"weight_decay": 0.1},
            r"off at a_t=-0.05 and on at 0 \(step 0\)",
        ),
        (
            lambda: WeightDecayShutoffCallback("a_t=-0.001"),
            {"weight_decay": 0.1},
            "schedule a_t is -0.00065 after step 12, so a_t=-0.001 is not reached.*raise --weight_decay",
        ),
        (
            lambda: WeightDecayShutoffCallback("a_t=-0.0006", until="6"),
            {"weight_decay": 0.1},
            "schedule a_t is -0.000475 after step 6",
        ),
        (
            lambda: WeightDecayShutoffCallback("a_t=-0.0001"),
            {"weight_decay": 0.1, "optim_args": "decoupled_weight_decay=false"},
            "a_t has no meaning here.*decouple it. Name a moment",
        ),
        (
            lambda: WeightDecayShutoffCallback("attention/nuc_over_fro=2"),
            {"weight_decay": 0.1},
            r"SpectralCallback measures, and there is none. Add SpectralCallback\(50\)",
        ),
    ],
)
def test_nonsense_is_an_error_before_the_first_step(
    tmp_path: Path, callback: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, callbacks=[callback()], **options).train()


@pytest.mark.parametrize(
    ("at", "every", "message"),
    [
        ("lora/nuc_over_fro=2", 2, "follows lora, of which.*measured are attention, attention_heads. Name another"),
        ("attention/nuc_over_fro=4", 2, "at most 4 at rank 16, so it never falls to attention/nuc_over_fro=4"),
        ("attention/nuc_over_fro=3", 2, "is 2.9.. before the first step.*until attention/nuc_over_fro=3. Write a smal"),
        ("attention/nuc_over_fro=2", 16, "measured every 16 steps and training has 16.*Measure more often"),
        ("attention/nuc_over_fro=2", "epoch", "measured every 8 steps and training has 8"),
    ],
)
def test_a_ratio_that_cannot_come_down_is_an_error_before_the_first_step(
    tmp_path: Path, at: str, every: int | str, message: str
) -> None:
    """In either order of the callbacks."""
    for order in (1, -1):
        callbacks = [WeightDecayShutoffCallback(at), SpectralCallback(every)][::order]
        options = FALLING | ({"max_steps": 8} if every == "epoch" else {})
        with pytest.raises(ValueError, match=message):
            trainer(tmp_path, callbacks=callbacks, **options).train()
    assert not (tmp_path / "pdyn").exists()


def test_another_target_is_looked_at_from_the_checkpoint_on(tmp_path: Path) -> None:
    """With the a_t that the run has come to; a run without the callback's state starts at 0."""
    options = FALLING | {"save_strategy": "steps", "save_steps": 8}
    trainer(tmp_path, callbacks=[WeightDecayShutoffCallback("a_t=-1.2")], **options).train()
    trainer(tmp_path / "without", callbacks=[TelemetryCallback()], **options).train()
    for folder, at, said, steps in (
        (tmp_path, "a_t=-1", "wait for a_t=-1.2.*waits for a_t=-1 in this one", 2),
        (tmp_path / "without", "a_t=-0.5", "no shutoff state.*way to the target starts anew", 5),
    ):
        decays = Decays()
        run = trainer(folder, callbacks=[WeightDecayShutoffCallback(at), decays], **options)
        with pytest.warns(UserWarning, match=said):
            run.train(resume_from_checkpoint=str(folder / "checkpoint-8"))
        assert [max(step) for step in decays.steps] == [10.0] * steps + [0.0] * (8 - steps)
