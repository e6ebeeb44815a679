"""What happens to a run resumed from a checkpoint that was written otherwise."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_pdyn import (
    NonfiniteCallback,
    PControlCallback,
    ScheduleCallback,
    TelemetryCallback,
    WeightDecayShutoffCallback,
)
from hf_pdyn.policy.algorithm1 import ControlConfig
from tests.training import gpt2, saved_state, trainer, training_logs

CONFIG = ControlConfig(p_min=0.1, p_max=0.6, p_step=0.05, threshold=1.2)
COMMON: dict[str, Any] = {"max_steps": 16, "save_strategy": "steps", "save_steps": 8, "weight_decay": 0.1}


def steering() -> list[TrainerCallback]:
    return [PControlCallback(CONFIG, interval=3), TelemetryCallback()]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of step 8 by padam with control and telemetry."""
    out = tmp_path_factory.mktemp("written")
    trainer(out, callbacks=steering(), **COMMON).train()
    return out / "checkpoint-8"


@pytest.fixture
def checkpoint(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "checkpoint-8"))


def resume(checkpoint: Path, callbacks: list[TrainerCallback], **options: Any) -> Any:
    run = trainer(checkpoint.parent / "resumed", callbacks=callbacks, **(COMMON | options))
    run.train(resume_from_checkpoint=str(checkpoint))
    return run


def change_memory(checkpoint: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    state = saved_state(checkpoint)
    change(state["stateful_callbacks"]["pdyn"])
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))


# Other optimizers


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd"])
def test_another_optimizers_state_is_refused_by_padam(tmp_path: Path, optim: str) -> None:
    trainer(tmp_path, optim=optim, **COMMON).train()
    with pytest.raises(ValueError, match="no exponent p"):
        resume(tmp_path / "checkpoint-8", [])


def test_labelled_groups_are_refused_by_adamw_itself(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="different number of parameter groups"):
        resume(checkpoint, [], optim="adamw_torch")


class OneLayer(torch.nn.Module):
    """Labels split neither of the Trainer's two groups, so AdamW has as many as Padam."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(12, 2)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> SequenceClassifierOutput:
        logits = self.linear(input_ids.float())
        return SequenceClassifierOutput(loss=logits.square().mean(), logits=logits)


def test_groups_that_adamw_takes_over_are_refused_by_a_callback(tmp_path: Path) -> None:
    trainer(tmp_path, OneLayer(), **COMMON).train()

    def resumed(callbacks: list[TrainerCallback]) -> Any:
        run = trainer(tmp_path / "resumed", OneLayer(), callbacks=callbacks, optim="adamw_torch", **COMMON)
        run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
        return run

    for callback in (TelemetryCallback(), PControlCallback(CONFIG)):
        with pytest.raises(ValueError, match="was written by Padam, this run trains with AdamW.*eps=1e-16"):
            resumed([callback])
    # As documented: without one, torch's AdamW takes Padam's settings with its groups.
    assert {group["eps"] for group in resumed([]).optimizer.param_groups} == {1e-8**2}


# Other groups


def test_another_number_of_tensors_is_refused_by_name(checkpoint: Path) -> None:
    with pytest.raises(
        ValueError, match=r"weight/attention \d+ tensors in the checkpoint, weight/attention \d+ tensors here"
    ):
        trainer(checkpoint.parent / "resumed", gpt2(layers=3), **COMMON).train(resume_from_checkpoint=str(checkpoint))


def test_another_number_of_groups_is_refused_by_name(checkpoint: Path) -> None:
    model = gpt2()
    for name, param in model.named_parameters():
        param.requires_grad_("ln_" not in name)
    with pytest.raises(ValueError, match=r"bias_like/norm \d+ tensors in the checkpoint"):
        trainer(checkpoint.parent / "resumed", model, **COMMON).train(resume_from_checkpoint=str(checkpoint))


# No state


def test_a_checkpoint_without_the_plugin_starts_telemetry_anew_and_says_so(tmp_path: Path) -> None:
    trainer(tmp_path, optim="sgd", **COMMON).train()
    with pytest.warns(UserWarning, match="checkpoint of step 8 has no telemetry state") as caught:
        run = resume(tmp_path / "checkpoint-8", [TelemetryCallback()], optim="sgd")
    assert len(caught) == 1
    rates = [record["learning_rate"] for record in run.state.log_history if "learning_rate" in record]
    assert -9e-4 < training_logs(run.state.log_history)[-1]["pdyn/a_t"] < 0  # 8 steps at most 1e-3, decay 0.1
    assert len(rates) == 8


def test_a_checkpoint_without_control_starts_it_anew_at_the_checkpoints_p(tmp_path: Path) -> None:
    trainer(tmp_path, callbacks=[ScheduleCallback("p", 0.4)], **COMMON).train()
    control = PControlCallback(CONFIG, interval=3)
    with pytest.warns(UserWarning, match="no control state.*checkpoint's p"):
        run = resume(tmp_path / "checkpoint-8", [control])
    assert control._state.interval == 2  # of 8 steps, with intervals of 3
    first = next(record for record in run.state.log_history if "pdyn/control/p" in record)
    assert first["pdyn/control/p"] == 0.4


def test_a_checkpoint_of_the_model_alone_is_said_once(checkpoint: Path) -> None:
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (checkpoint / name).unlink()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        resume(checkpoint, steering())
    said = [str(one.message) for one in caught if "Padam resumes at step 8 without its state" in str(one.message)]
    assert len(said) == 1
    assert "Resume from a checkpoint with optimizer.pt" in said[0]


# Damaged or other state of ours

DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no window": (lambda memory: memory.pop("window"), "'window' is missing"),
    "no step": (lambda memory: memory.pop("step"), "'step' is missing"),
    "a newer key": (lambda memory: memory.update(future=1), "'future' is unknown"),
    "another interval": (lambda memory: memory["window"].pop("grad_norm"), "interval in this checkpoint must have"),
    "a newer interval": (lambda memory: memory["window"].update(future=1), "interval in this checkpoint must have"),
}
OF_CONTROL = DAMAGES | {
    "no p": (lambda memory: memory["state"].pop("p"), "Algorithm 1's state .* 'p' is missing"),
    "no minimum": (lambda memory: memory["state"].pop("bias_norm_min"), "'bias_norm_min' is missing"),
    "a newer state": (lambda memory: memory["state"].update(future=1), "'future' is unknown"),
}


@pytest.mark.parametrize("damage", OF_CONTROL)
def test_control_refuses_a_state_it_cannot_read(checkpoint: Path, damage: str) -> None:
    change, message = OF_CONTROL[damage]
    change_memory(checkpoint, lambda memory: change(memory["control"]))
    with pytest.raises(ValueError, match=message):
        resume(checkpoint, [PControlCallback(CONFIG, interval=3)])


@pytest.mark.parametrize("damage", DAMAGES)
def test_telemetry_starts_anew_and_says_so(checkpoint: Path, damage: str) -> None:
    change, message = DAMAGES[damage]
    change_memory(checkpoint, lambda memory: change(memory["telemetry"]))
    with pytest.warns(UserWarning, match=message):
        run = resume(checkpoint, steering())
    assert "pdyn/D_w" in training_logs(run.state.log_history)[-1]


def test_another_version_is_refused_whatever_it_holds(checkpoint: Path) -> None:
    def change(memory: dict[str, Any]) -> None:
        memory["version"] = 0
        memory["intervals"] = memory.pop("control")

    change_memory(checkpoint, change)
    with pytest.raises(ValueError, match="pdyn state has version 0, this hf_pdyn reads 1"):
        resume(checkpoint, steering())


# Settings that come with the checkpoint


def test_what_a_callback_moved_and_nobody_writes_is_said(tmp_path: Path) -> None:
    options = COMMON | {"logging_steps": 2}
    trainer(tmp_path, callbacks=[ScheduleCallback("p", "0.3"), WeightDecayShutoffCallback(4)], **options).train()
    with pytest.warns(UserWarning, match="has moved") as said:
        resume(tmp_path / "checkpoint-8", [NonfiniteCallback("skip")])
    texts = sorted(str(one.message) for one in said)
    assert [text[:80] for text in texts] == [
        "A callback of the run that wrote this checkpoint has moved p from 0.5 to 0.3, an",
        "A callback of the run that wrote this checkpoint has moved weight_decay from 0.1",
    ]
    assert "Add that callback, or a schedule of weight_decay." in texts[1]


def test_settings_of_the_command_line_that_the_checkpoint_overrules_are_said(checkpoint: Path) -> None:
    with pytest.warns(UserWarning, match="overrules p=0.3 by the checkpoint's 0.5, eps=1e-08 by the checkpoint's 1.0"):
        resume(checkpoint, steering(), optim_args="p=0.3,eps=1e-8")
