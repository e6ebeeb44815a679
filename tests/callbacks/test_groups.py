"""Group rules in a Trainer: with every optimizer, through checkpoints, schedules and logs."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback

from hf_pdyn import (
    GroupRulesCallback,
    LearningRateScheduleCallback,
    PdynArguments,
    ScheduleCallback,
    StepStatistics,
    TelemetryCallback,
)
from hf_pdyn.measure.power_moments import PowerMomentsReader
from tests.training import gpt2, trainer, training_logs

RULES: list[dict[str, Any]] = [
    {"name": "embeddings", "match": "wte|wpe", "lr_mult": 0.1},
    {"name": "body", "match": r"\.h\.", "layer": 0.5, "weight_decay": 0.2},
]
OPTIMIZERS = ("padam", "adamw_torch", "adamw_torch_fused", "sgd", "adafactor", "rmsprop")


class Settings(TrainerCallback):
    """The largest that groups had at each step, by name or by another of their keys."""

    def __init__(self, field: str, by: str = "group_name") -> None:
        self.field = field
        self.by = by
        self.steps: list[dict[str | None, float]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        found: dict[str | None, float] = {}
        for group in optimizer.param_groups:
            key = group.get(self.by)
            found[key] = max(float(group[self.field]), found.get(key, 0.0))
        self.steps.append(found)


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_every_optimizer_steps_the_groups_as_given(tmp_path: Path, optim: str) -> None:
    rates = Settings("lr")
    run = trainer(
        tmp_path,
        optim=optim,
        lr_scheduler_type="linear",
        weight_decay=0.1,
        max_steps=4,
        logging_steps=1,
        callbacks=[GroupRulesCallback(RULES), TelemetryCallback(), rates],
    )
    before = {name: param.detach().clone() for name, param in run.model.named_parameters()}
    run.train()
    for step, seen in enumerate(rates.steps):
        whole = 1e-3 * (1 - step / 4)
        assert seen["embeddings"] == pytest.approx(0.1 * whole)
        assert seen[None] == pytest.approx(whole)
    moved = {name: (param - before[name]).abs().max().item() for name, param in run.model.named_parameters()}
    assert all(value > 0 for name, value in moved.items() if not name.endswith("wpe.weight"))
    names = {group.get("group_name") for group in run.optimizer.param_groups}
    assert names == {"embeddings", "body", None}
    records = training_logs(run.state.log_history)
    for record in records:
        shares = [record[f"pdyn/by_group/{name}/grad_share"] for name in ("embeddings", "body")]
        assert 0 < sum(shares) < 1  # ln_f is in no group
    assert records[0]["pdyn/by_group/body/lr"] == pytest.approx(0.5 * 1e-3)
    assert records[0]["pdyn/by_group/body/weight_decay"] == 0.2
    assert ("pdyn/by_group/body/p" in records[0]) == (optim == "padam")


def test_the_gradient_of_groups_is_that_of_their_parameters(tmp_path: Path) -> None:
    norms: list[float] = []

    class Norm(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            grads = [param.grad for name, param in model.named_parameters() if ".h." in name]
            norms.append(torch.cat([grad.flatten() for grad in grads]).norm().item())

    run = trainer(
        tmp_path,
        max_steps=3,
        logging_steps=1,
        max_grad_norm=0.0,
        callbacks=[GroupRulesCallback(RULES), TelemetryCallback(), Norm()],
    )
    run.train()
    logged = [record["pdyn/by_group/body/grad_norm"] for record in training_logs(run.state.log_history)]
    assert logged == pytest.approx(norms, rel=1e-5)


class OwnOptimizer(Trainer):
    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.5)
        return self.optimizer


def test_a_trainer_s_own_optimizer_is_split_as_well(tmp_path: Path) -> None:
    rates = Settings("lr")
    callbacks = [GroupRulesCallback(RULES), rates]
    run = trainer(tmp_path, trainer_class=OwnOptimizer, lr_scheduler_type="constant", callbacks=callbacks)
    run.train()
    assert rates.steps[0] == pytest.approx({"embeddings": 0.05, "body": 0.25, None: 0.5})


def test_an_optimizer_that_was_given_is_split_as_well(tmp_path: Path) -> None:
    model = gpt2()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    run = trainer(tmp_path, model, optimizers=(optimizer, None), callbacks=[GroupRulesCallback(RULES)])
    run.train()
    assert {group.get("group_name") for group in optimizer.param_groups} == {"embeddings", "body", None}


def test_learning_rates_that_are_tensors_stay_apart(tmp_path: Path) -> None:
    """A scheduler fills them: groups that were split from one must not share it."""
    model = gpt2()
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(1e-3), foreach=False)
    rules = [{"name": "half", "match": "wte", "schedule": {"lr_mult": 0.5}}, {"name": "same", "match": "wpe"}]
    callbacks = [GroupRulesCallback(rules), TelemetryCallback()]
    run = trainer(tmp_path, model, optimizers=(optimizer, None), max_steps=4, logging_steps=1, callbacks=callbacks)
    run.train()
    for step, record in enumerate(training_logs(run.state.log_history)):
        rates = [record[f"pdyn/by_group/{name}/lr"] for name in ("half", "same")]
        assert rates == pytest.approx([0.5e-3 * (1 - step / 4), 1e-3 * (1 - step / 4)])


def test_a_second_training_has_the_same_groups(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=3, callbacks=[GroupRulesCallback(RULES)])
    run.train()
    groups = len(run.optimizer.param_groups)
    run.train()
    assert len(run.optimizer.param_groups) == groups


def test_schedules_of_single_groups(tmp_path: Path) -> None:
    rules = [
        {"name": "warm", "match": "wte", "schedule": {"lr_mult": "linear:0..1@0..2"}},
        {"name": "own", "match": "wpe", "schedule": {"lr": "step:0.5,0.25@2"}},
        {"name": "body", "match": r"\.h\.", "weight_decay": 0.1, "schedule": {"weight_decay": "step:0.2,0.05@2"}},
    ]
    rates, decays = Settings("lr"), Settings("weight_decay")
    run = trainer(
        tmp_path,
        optim="adamw_torch",
        lr_scheduler_type="linear",
        max_steps=4,
        callbacks=[GroupRulesCallback(rules), rates, decays],
    )
    run.train()
    assert [step["warm"] for step in rates.steps] == pytest.approx([0.0, 0.5 * 0.75e-3, 0.5e-3, 0.25e-3])
    assert [step["own"] for step in rates.steps] == [0.5, 0.5, 0.25, 0.25]
    weights = [group for group in run.optimizer.param_groups if group.get("decays") is not None]
    assert {(group["decays"], group["weight_decay"]) for group in weights} == {(True, 0.05), (False, 0.0)}
    rates.steps.clear()
    run.train()  # the Trainer's scheduler begins anew, and so do these
    assert rates.steps[1]["warm"] == pytest.approx(0.5 * 0.75e-3)


def test_a_second_training_warms_up_where_a_first_one_scheduled(tmp_path: Path) -> None:
    """What one training wrote into `lr` is no initial value of the next: the Trainer's scheduler begins at 0."""
    rules = [{"name": "half", "match": "wte", "schedule": {"lr_mult": 0.5}}]
    rates = Settings("lr")
    callbacks = [GroupRulesCallback(rules), rates]
    run = trainer(tmp_path, optim="adamw_torch", warmup_steps=2, max_steps=4, callbacks=callbacks)
    run.train()
    run.train()
    first, second = rates.steps[:4], rates.steps[4:]
    assert first[0] == {"half": 0.0, None: 0.0}
    assert second == first


def test_the_allocation_curve_counts_no_parameter_twice(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=2, callbacks=[GroupRulesCallback(RULES)])
    run.create_optimizer()
    statistics = StepStatistics(run.optimizer, run.model)
    for param in run.model.parameters():
        param.grad = torch.ones_like(param)
    run.optimizer.step()
    assert {scope.group for scope in statistics.scopes} == {None, "embeddings", "body"}
    found = PowerMomentsReader(statistics, per_layer=True).read().moments
    assert found and {scope.group for scope in found} == {None}


def test_decay_of_a_rule_alone_can_be_switched_off(tmp_path: Path) -> None:
    (tmp_path / "groups.yaml").write_text(json.dumps(RULES))
    decays = Settings("weight_decay")
    given = PdynArguments(groups=str(tmp_path / "groups.yaml"), wd_off="0.5", telemetry="none")
    run = trainer(tmp_path / "run", optim="adamw_torch", max_steps=4, callbacks=[*given.callbacks(), decays])
    given.check(run.args)
    with pytest.raises(ValueError, match="wd_off has nothing to switch off"):
        PdynArguments(wd_off="0.5").check(run.args)
    run.train()
    decaying = [group for group in run.optimizer.param_groups if group.get("decays")]
    assert decaying and all(group["weight_decay"] == 0.0 for group in decaying)
    assert max(max(step.values()) for step in decays.steps[:2]) > 0


def test_resumed_runs_have_the_groups_of_the_checkpoint(tmp_path: Path) -> None:
    def run(rules: list[dict[str, Any]], **options: Any) -> Trainer:
        callbacks = [GroupRulesCallback(rules), TelemetryCallback()]
        return trainer(tmp_path / "run", optim="adamw_torch", callbacks=callbacks, save_steps=4, **options)

    run(RULES, max_steps=4, save_strategy="steps").train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = run(RULES, max_steps=8)
        same.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    changed = [{**RULES[0], "lr_mult": 0.2}, RULES[1]]
    with pytest.warns(UserWarning, match="Group 'embeddings' goes on with the checkpoint's lr=0.0001.*lr=0.0002"):
        run(changed, max_steps=8).train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optim": "adamw_torch", "rules": [{"name": "a", "match": ".", "p": 0.4}]}, "p is for --optim padam"),
        ({"rules": [{"name": "a", "match": "nothing"}]}, "matches no trainable parameter"),
        ({"late": True}, "have not reached the optimizer"),
        (
            {"rules": [{"name": "a", "match": ".", "schedule": {"lr_mult": 0.5}}], "lr_scheduler_type": "plateau"},
            "lr_mult cannot be scheduled beside reduce_lr_on_plateau",
        ),
        ({"scheduled": True}, "must come before the learning rate's scheduler"),
        ({"twice": True}, "Two sets of group rules"),
    ],
)
def test_what_cannot_be_is_an_error_before_the_first_step(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    rules = options.pop("rules", RULES)
    late, scheduled, twice = (options.pop(name, False) for name in ("late", "scheduled", "twice"))
    if options.pop("lr_scheduler_type", None):
        options |= {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 4}
    model = gpt2()
    if scheduled:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        options["optimizers"] = (optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer))
    callbacks = [GroupRulesCallback(rules)] + ([GroupRulesCallback([{"name": "b", "match": "."}])] if twice else [])
    run = trainer(tmp_path, model, callbacks=[] if late else callbacks, **options)
    if late:
        run.add_callback(GroupRulesCallback(rules))
    with pytest.raises(ValueError, match=message):
        run.train()


def test_a_callback_that_is_given_its_trainer_may_come_late(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=2)
    run.add_callback(GroupRulesCallback(RULES, trainer=run))
    run.train()
    assert {group.get("group_name") for group in run.optimizer.param_groups} == {"embeddings", "body", None}


def test_the_command_line_has_the_file_and_its_names(tmp_path: Path) -> None:
    (tmp_path / "groups.yaml").write_text(json.dumps(RULES))
    given = PdynArguments(groups=str(tmp_path / "groups.yaml"), schedule=["lr_mult.body=0.5", "weight_decay.body=0.1"])
    kinds = [type(callback) for callback in given.callbacks()[:3]]
    assert kinds == [GroupRulesCallback, LearningRateScheduleCallback, ScheduleCallback]
    with pytest.raises(ValueError, match=r"schedule's label must be one of .*embeddings, body, got 'bodi'"):
        PdynArguments(groups=str(tmp_path / "groups.yaml"), schedule=["lr_mult.bodi=0.5"])
    with pytest.raises(ValueError, match="groups must be a YAML file that can be read"):
        PdynArguments(groups=str(tmp_path / "none.yaml"))
    run = trainer(tmp_path / "run", weight_decay=0.1, max_steps=2, callbacks=given.callbacks())
    run.train()
    recorded = json.loads((tmp_path / "run" / "pdyn" / "run.json").read_text())
    assert "embeddings" in str(recorded["starts"][0]["callbacks"][0])


def test_a_label_s_learning_rate_follows_a_schedule(tmp_path: Path) -> None:
    rates = Settings("lr", by="component")
    callbacks = [LearningRateScheduleCallback("lr_mult", "0.5", "norm"), rates]
    trainer(tmp_path, max_steps=2, lr_scheduler_type="constant", callbacks=callbacks).train()
    for step in rates.steps:
        assert step["norm"] == pytest.approx(0.5e-3) and step["mlp"] == pytest.approx(1e-3)
