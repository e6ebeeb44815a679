import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from hf_pdyn import Padam, PControlCallback, ScheduleCallback, TelemetryCallback, build_param_groups
from hf_pdyn.policy.algorithm1 import BRANCHES, ControlConfig, ControlState, next_p
from hf_pdyn.run_dir import run_json
from tests.training import gpt2, trainer, training_logs

CONFIG = ControlConfig(p_min=0.1, p_max=0.6, p_step=0.05, threshold=1.2)


class Exponents(TrainerCallback):
    """The p that each step used, as it stands in the groups."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.pinned: list[float] = []

    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        free = {group["p"] for group in optimizer.param_groups if not group["p_pinned"]}
        assert len(free) == 1
        self.steps.append(free.pop())
        self.pinned.extend(group["p"] for group in optimizer.param_groups if group["p_pinned"])


def decisions(logs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record for record in logs if "pdyn/control/branch" in record]


def test_decisions_are_algorithm_1_on_the_logged_norms(tmp_path: Path) -> None:
    """Telemetry over the same intervals gives D_w, D_b; the pure function must then give the same p."""
    exponents = Exponents()
    run = trainer(
        tmp_path,
        max_steps=24,
        logging_steps=3,
        callbacks=[PControlCallback(CONFIG, interval=3), TelemetryCallback(), exponents],
    )
    run.train()
    logs = training_logs(run.state.log_history)
    state = ControlState(p=0.5)
    used = []
    for record in logs:
        used += [state.p] * 3
        assert record["pdyn/p"] == state.p  # the p of the record's steps, not the one decided at its end
        state = next_p(state, weight_norm=record["pdyn/D_w"], bias_norm=record["pdyn/D_b"], config=CONFIG)
        assert record["pdyn/control/p"] == state.p
        assert BRANCHES[int(record["pdyn/control/branch"])] == state.branch
        assert record["pdyn/control/weight_norm"] == record["pdyn/D_w"]
        assert record["pdyn/control/interval"] == state.interval
    assert exponents.steps == used
    assert len(set(used)) > 2


def test_an_epoch_as_the_interval(tmp_path: Path) -> None:
    exponents, control = Exponents(), PControlCallback(CONFIG, "epoch")
    run = trainer(tmp_path, max_steps=-1, num_train_epochs=4, callbacks=[control, exponents])
    run.train()
    per_epoch = [exponents.steps[8 * e : 8 * e + 8] for e in range(4)]
    assert all(len(set(epoch)) == 1 for epoch in per_epoch)
    assert per_epoch[0][0] == per_epoch[1][0] == 0.5  # the first interval keeps p
    assert control._state.interval == 4


def test_the_default_interval_fits_a_short_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    exponents = Exponents()
    run = trainer(tmp_path, max_steps=40, callbacks=[PControlCallback(CONFIG), exponents])
    with caplog.at_level(logging.INFO, "hf_pdyn"):
        run.train()
    changes = [step for step in range(1, 40) if exponents.steps[step] != exponents.steps[step - 1]]
    assert changes
    assert set(changes) <= {20, 30}
    assert "decides every 10 optimizer steps; 2 decisions can move p" in caplog.text
    (settings,) = run_json.read(tmp_path)["starts"][0]["callbacks"]
    assert (settings["interval"], settings["interval_steps"]) == ("auto", 10)


@pytest.mark.parametrize(
    ("interval", "steps", "message"),
    [
        ("auto", 10, "cannot move p in this training: it has 10 steps, an interval takes 10"),
        ("epoch", 16, "cannot move p"),
        (8, 17, "can move p only once"),
    ],
)
def test_control_that_can_hardly_decide_says_so(tmp_path: Path, interval: int | str, steps: int, message: str) -> None:
    run = trainer(tmp_path, max_steps=steps, callbacks=[PControlCallback(CONFIG, interval)])
    with pytest.warns(UserWarning, match=message):
        run.train()


def test_clipped_norms_would_decide_otherwise(tmp_path: Path) -> None:
    """With clipping active the clipped norms obey D_w^2 + D_b^2 = const; the controller reads the others."""
    run = trainer(
        tmp_path,
        max_steps=24,
        logging_steps=3,
        max_grad_norm=0.01,
        callbacks=[PControlCallback(CONFIG, interval=3), TelemetryCallback()],
    )
    run.train()
    logs = training_logs(run.state.log_history)
    before, after = ControlState(p=0.5), ControlState(p=0.5)
    before_clipping, after_clipping = [], []
    for record in logs:
        before = next_p(before, weight_norm=record["pdyn/D_w"], bias_norm=record["pdyn/D_b"], config=CONFIG)
        after = next_p(
            after, weight_norm=record["pdyn/D_w_clipped"], bias_norm=record["pdyn/D_b_clipped"], config=CONFIG
        )
        before_clipping.append(before.p)
        after_clipping.append(after.p)
    assert [record["pdyn/control/p"] for record in logs] == before_clipping
    assert before_clipping != after_clipping


def test_pinned_groups_keep_their_p(tmp_path: Path) -> None:
    exponents = Exponents()
    run = trainer(
        tmp_path, optim_args="p.norm=0.2", max_steps=24, callbacks=[PControlCallback(CONFIG, interval=3), exponents]
    )
    run.train()
    assert set(exponents.pinned) == {0.2}
    assert len(set(exponents.steps)) > 1


def test_a_second_training_starts_anew(tmp_path: Path) -> None:
    control, exponents = PControlCallback(CONFIG, interval=3), Exponents()
    run = trainer(tmp_path, callbacks=[control, exponents])
    for _ in range(2):
        exponents.steps.clear()
        run.train()
        assert control._state.interval == 4
        assert exponents.steps[:6] == [0.5] * 6
        assert exponents.steps[-1] != 0.5
    run.remove_callback(control)
    exponents.steps.clear()
    run.train()
    assert exponents.steps == [exponents.steps[0]] * 12


def test_a_p_set_by_hand_before_the_training_is_its_start(tmp_path: Path) -> None:
    exponents = Exponents()
    run = trainer(tmp_path, callbacks=[PControlCallback(CONFIG, interval=3), exponents])
    for group in run.create_optimizer().param_groups:
        group["p"] = 0.3
    for _ in range(2):
        exponents.steps.clear()
        run.train()
        assert exponents.steps[0] == 0.3


def test_it_works_with_an_optimizer_of_one_s_own(tmp_path: Path) -> None:
    model = gpt2()
    optimizer = Padam(build_param_groups(model, weight_decay=0.1), lr=1e-3, p=0.4)
    run = trainer(tmp_path, model, optimizers=(optimizer, None), callbacks=[PControlCallback(CONFIG, interval=3)])
    run.train()
    assert {group["p"] for group in optimizer.param_groups} == {run.state.log_history[-2]["pdyn/control/p"]}


def frozen_biases() -> torch.nn.Module:
    model = gpt2()
    for name, param in model.named_parameters():
        param.requires_grad = name.endswith("weight") and "ln_" not in name
    return model


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"optim": "adamw_torch"},
            "moves the exponent p of Padam, got AdamW, which has none. Train with --optim padam",
        ),
        ({"optim_args": "p=0.9"}, r"\[p_min, p_max\] = \[0.1, 0.6\], got p=0.9"),
        ({"model": "frozen"}, r"trains only weight parameters. With LoRA, train biases .*norms .*ln_1"),
        ({"optim_args": "p.weight=0.3,p.bias_like=0.2"}, "nothing is left to control"),
        ({"interval": 13}, "must end within training: got 13 steps, training has 12"),
        ({"beside": ScheduleCallback("p", 0.4)}, "would both write p. Drop one of them"),
        ({"beside": PControlCallback(CONFIG, 3)}, "Two of PControlCallback, of which options may make one, would both"),
    ],
)
def test_nonsense_is_an_error_before_the_first_step(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    if options.get("model") == "frozen":
        options = {"model": frozen_biases()}
    control = PControlCallback(CONFIG, options.pop("interval", 3))
    beside = [options.pop("beside")] if "beside" in options else []
    run = trainer(tmp_path, callbacks=[*beside, control], **options)
    with pytest.raises(ValueError, match=message):
        run.train()
    assert run.state.global_step == 0


def test_an_interval_without_a_finite_step_decides_nothing(tmp_path: Path) -> None:
    class Poison(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            next(model.parameters()).grad[0, 0] = math.nan

    exponents = Exponents()
    control = PControlCallback(CONFIG, interval=3)
    run = trainer(tmp_path, max_grad_norm=0.0, callbacks=[control, Poison(), exponents])
    run.train()
    assert set(exponents.steps) == {0.5}
    assert control._state == ControlState(p=0.5)


@pytest.mark.parametrize("interval", [0, -1, "epochs", 1.5, True, "1_0", "9" * 400])
def test_bad_intervals(interval: Any) -> None:
    with pytest.raises(ValueError, match="interval.*auto, epoch.*>= 1"):
        PControlCallback(CONFIG, interval)


def test_schedules_move_p_per_step_and_per_label(tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []

    class Record(TrainerCallback):
        def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
            seen.append({group["component"]: group["p"] for group in optimizer.param_groups})

    run = trainer(
        tmp_path,
        max_steps=10,
        callbacks=[ScheduleCallback("p", "linear:0.45..0.35"), ScheduleCallback("p", "0.1", label="norm"), Record()],
    )
    run.train()
    assert [step["mlp"] for step in seen] == pytest.approx([0.45 - 0.01 * i for i in range(10)])
    assert {step["norm"] for step in seen} == {0.1}


def test_a_record_has_the_last_of_its_decisions_and_their_number(tmp_path: Path) -> None:
    run = trainer(tmp_path, logging_steps=6, callbacks=[PControlCallback(CONFIG, interval=2)])
    run.train()
    logs = training_logs(run.state.log_history)
    assert [(r["pdyn/control/interval"], r["pdyn/control/decisions"]) for r in logs] == [(3, 3), (6, 3)]


def test_logging_before_any_training(tmp_path: Path) -> None:
    trainer(tmp_path, callbacks=[PControlCallback(CONFIG), TelemetryCallback()]).log({"loss": 1.0})
