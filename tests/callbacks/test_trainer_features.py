"""The plugin beside the Trainer's own features: each run against the plain one that it should equal."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

from hf_pdyn import PControlCallback, ScheduleCallback, TelemetryCallback, WeightDecayShutoffCallback
from hf_pdyn.policy.algorithm1 import ControlConfig, ControlState, next_p
from tests.callbacks.test_mixed_precision import InOrder
from tests.training import arguments, gpt2, saved_state, token_blocks, trainer, training_logs

CONFIG = ControlConfig(p_min=0.1, p_max=0.6, p_step=0.05, threshold=1.2)
COMMON: dict[str, Any] = {"weight_decay": 0.1, "max_steps": 12, "logging_steps": 2, "trainer_class": InOrder}


def everything() -> list[TrainerCallback]:
    return [PControlCallback(CONFIG, interval=2), WeightDecayShutoffCallback("0.5"), TelemetryCallback(per_layer=True)]


def metrics(run: Any) -> list[dict[str, float]]:
    """The plugin's part of every training record."""
    logs = training_logs(run.state.log_history)
    return [{name: value for name, value in record.items() if name.startswith("pdyn/")} for record in logs]


def assert_close(ours: list[dict[str, float]], expected: list[dict[str, float]], rel: float) -> None:
    assert [record.keys() for record in ours] == [record.keys() for record in expected]
    for record, other in zip(ours, expected, strict=True):
        # A relative change is the difference of two numbers that are each good to `rel`.
        assert record == pytest.approx(other, rel=rel, abs=rel)


def labels(run: Any) -> list[tuple[str, str, int]]:
    groups = run.optimizer.param_groups
    return [(group["pathway"], group["component"], len(group["params"])) for group in groups]


def step_hooks(run: Any) -> int:
    return len(run.optimizer.optimizer._optimizer_step_post_hooks)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # dynamo's own
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_torch_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """To 1e-4: a traced backward may add in another order, in float32, over 8 steps that build on each other."""
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "no")  # so that what TrainingArguments set is undone
    plain = trainer(tmp_path, callbacks=everything(), **(COMMON | {"max_steps": 8}))
    plain.train()
    options = COMMON | {"max_steps": 8, "torch_compile": True, "torch_compile_backend": backend}
    compiled = trainer(tmp_path, callbacks=everything(), **options)
    try:
        compiled.train()
    finally:
        torch._dynamo.reset()
    assert type(compiled.model_wrapped).__name__ == "OptimizedModule"
    assert labels(compiled) == labels(plain)
    assert_close(metrics(compiled), metrics(plain), rel=1e-4)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")
def test_gradient_checkpointing(tmp_path: Path) -> None:
    """Bit for bit: the same operations, run twice."""
    plain = trainer(tmp_path, callbacks=everything(), **COMMON)
    plain.train()
    options = COMMON | {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    checkpointed = trainer(tmp_path, callbacks=everything(), **options)
    checkpointed.train()
    assert checkpointed.model.is_gradient_checkpointing
    assert metrics(checkpointed) == metrics(plain)


class OutOfMemory(InOrder):
    """The forward pass of this step fails as long as the batch has its first size."""

    step = 0
    first_size = 16

    def get_train_dataloader(self) -> Any:
        loader = torch.utils.data.DataLoader(token_blocks(192), batch_size=self._train_batch_size)
        return self.accelerator.prepare(loader)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        if self._train_batch_size == self.first_size and self.state.global_step == self.step:
            raise RuntimeError("CUDA out of memory.")
        return super().compute_loss(*args, **kwargs)


OF_MOMENTS = ("v_hat", "update", "implicit_bias", "eps_share")


class FailsLate(OutOfMemory):
    step = 9  # when control has moved p, decay is off, and a measurement of this step is announced


def out_of_memory_callbacks() -> list[TrainerCallback]:
    return [*everything(), ScheduleCallback("p", "linear:0.3..0.2", label="norm")]


@pytest.mark.parametrize(("trainer_class", "learning_rate"), [(OutOfMemory, 1e-3), (FailsLate, 0.0)])
def test_auto_find_batch_size(tmp_path: Path, trainer_class: Any, learning_rate: float) -> None:
    """Bit for bit as if only the last attempt had been.

    The Trainer does not take back the steps of a failed attempt, so the late one is without a learning
    rate; moments stay with it too, and what is measured of them is left out.
    """
    options = COMMON | {"learning_rate": learning_rate, "max_grad_norm": 0.05, "trainer_class": trainer_class}
    run = trainer(
        tmp_path,
        auto_find_batch_size=True,
        per_device_train_batch_size=16,
        callbacks=out_of_memory_callbacks(),
        **options,
    )
    run.train()
    size = run._train_batch_size
    assert size < 16
    expected = trainer(tmp_path, per_device_train_batch_size=size, callbacks=out_of_memory_callbacks(), **options)
    expected.train()
    ours, theirs = metrics(run), metrics(expected)
    if trainer_class is FailsLate:
        for record in (*ours, *theirs):
            for name in [name for name in record if any(word in name for word in OF_MOMENTS)]:
                del record[name]
    assert ours == theirs
    assert len({record["pdyn/control/p"] for record in ours}) > 1
    assert [record["pdyn/weight_decay"] for record in ours] == [0.1] * 3 + [0.0] * 3
    assert step_hooks(run) == step_hooks(expected) == 1
    for group, other in zip(run.optimizer.param_groups, expected.optimizer.param_groups, strict=True):
        names = [name for name in group if name != "params"]
        assert {name: group[name] for name in names} == {name: other[name] for name in names}


class Losses(TrainerCallback):
    """What evaluations are said to have given."""

    def __init__(self, *losses: float) -> None:
        self.losses = list(losses)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        metrics["eval_loss"] = self.losses.pop(0)


def test_early_stopping_and_the_best_model_at_the_end(tmp_path: Path) -> None:
    options = COMMON | {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    best = options | {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": False}
    control, shutoff, telemetry = everything()
    losses = Losses(3.0, 2.0, 2.5, *[9.0] * 10)
    run = trainer(tmp_path / "best", callbacks=[losses, EarlyStoppingCallback(1), control, shutoff, telemetry], **best)
    run.train()
    plain = trainer(tmp_path / "plain", callbacks=everything(), **options)
    plain.train()
    assert run.state.global_step == 6
    assert metrics(run) == metrics(plain)[:3]
    assert run.state.best_model_checkpoint == str(tmp_path / "best" / "checkpoint-4")
    state, expected = (saved_state(tmp_path / name / "checkpoint-4") for name in ("best", "plain"))
    remembered, expected = (one["stateful_callbacks"]["pdyn"] for one in (state, expected))
    assert remembered.pop("run") != expected.pop("run")
    assert remembered == expected
    assert control._window is None and telemetry._window is None

    # The model is that of step 4; the optimizer goes on from step 6.
    p = run.optimizer.param_groups[0]["p"]
    run.train()
    first = metrics(run)[0]
    assert first["pdyn/p"] == p
    assert first["pdyn/a_t"] == pytest.approx(-0.1 * 1e-3 * (1 + 11 / 12))  # of two steps alone
    assert first["pdyn/control/interval"] == 1
    assert first["pdyn/weight_decay"] == 0.1
    assert step_hooks(run) == 1


def test_three_trainings_of_one_trainer(tmp_path: Path) -> None:
    """The second begins at the initial p and weight decay; the third is the first, resumed, bit for bit."""
    options = COMMON | {"save_strategy": "steps", "save_steps": 6, "logging_steps": 5}
    run = trainer(tmp_path, callbacks=everything(), **options)
    run.train()
    first, end = metrics(run), run.state.log_history[-1]
    weights = [param.detach().clone() for param in run.model.parameters()]
    shutil.copytree(tmp_path / "checkpoint-6", tmp_path / "kept" / "checkpoint-6")
    initial_p = run.optimizer.param_groups[0]["initial_p"]

    run.args.logging_steps = 2
    run.train()
    second = metrics(run)
    state = ControlState(p=initial_p)
    for record in second:
        assert record["pdyn/p"] == state.p
        state = next_p(state, weight_norm=record["pdyn/D_w"], bias_norm=record["pdyn/D_b"], config=CONFIG)
        assert record["pdyn/control/p"] == state.p
    assert [record["pdyn/control/interval"] for record in second] == [1, 2, 3, 4, 5, 6]
    assert [record["pdyn/weight_decay"] for record in second] == [0.1] * 3 + [0.0] * 3
    assert second[0]["pdyn/a_t"] == pytest.approx(-0.1 * 1e-3 * (1 + 11 / 12))

    run.args.logging_steps = 5
    run.train(resume_from_checkpoint=str(tmp_path / "kept" / "checkpoint-6"))
    assert metrics(run) == first
    assert step_hooks(run) == 1
    own = [name for name in end if name.startswith("pdyn/")]
    assert {name: run.state.log_history[-1][name] for name in own} == {name: end[name] for name in own}
    for param, expected in zip(run.model.parameters(), weights, strict=True):
        assert torch.equal(param, expected)


class Trials(TrainerCallback):
    def __init__(self) -> None:
        self.records: dict[str, list[dict[str, float]]] = {}

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        logs = training_logs(state.log_history)
        self.records[args.optim_args] = [
            {name: value for name, value in record.items() if name.startswith("pdyn/")} for record in logs
        ]


def test_hyperparameter_search(tmp_path: Path) -> None:
    """Trials over optim_args with one instance of each callback; each is a run of its own, bit for bit."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    choices = ["p=0.3", "p=0.45,update_scale=adam", "p=0.3,p.norm=0.2"]
    trials = Trials()
    options = {name: value for name, value in COMMON.items() if name != "trainer_class"}
    search = InOrder(
        model_init=lambda: gpt2(),
        args=arguments(tmp_path, **options),
        train_dataset=token_blocks(),
        eval_dataset=token_blocks(16, seed=9),
        callbacks=[*everything(), trials],
    )
    best = search.hyperparameter_search(
        hp_space=lambda trial: {"optim_args": trial.suggest_categorical("optim_args", choices)},
        n_trials=3,
        backend="optuna",
        direction="minimize",
        sampler=optuna.samplers.GridSampler({"optim_args": choices}),
    )
    assert best.hyperparameters["optim_args"] in choices
    assert trials.records.keys() == set(choices)
    for optim_args, records in trials.records.items():
        alone = trainer(tmp_path, callbacks=everything(), optim_args=optim_args, **COMMON)
        alone.train()
        assert records == metrics(alone)
    assert len({str(records) for records in trials.records.values()}) == 3


def test_callbacks_removed_and_added_between_trainings(tmp_path: Path) -> None:
    """What a label's schedule owned is free for control once the schedule is gone, also after a resume."""
    schedule = ScheduleCallback("p", "0.2", label="norm")
    telemetry, control = TelemetryCallback(per_layer=True), PControlCallback(CONFIG, interval=2)
    options = COMMON | {"optim_args": "p.embedding=0.4", "save_strategy": "steps", "save_steps": 12}
    run = trainer(tmp_path, callbacks=[schedule, telemetry], **options)
    run.train()
    assert metrics(run)[-1]["pdyn/by_label/bias_like/norm/p"] == 0.2
    shutil.copytree(tmp_path / "checkpoint-12", tmp_path / "kept" / "checkpoint-12")

    run.remove_callback(schedule)
    run.remove_callback(telemetry)
    run.add_callback(control)
    run.train()
    decided = control._state
    assert decided.interval == 6
    exponents = {group["component"]: group["p"] for group in run.optimizer.param_groups}
    assert exponents == {"attention": decided.p, "mlp": decided.p, "norm": decided.p, "embedding": 0.4}

    run.remove_callback(control)
    run.add_callback(telemetry)
    run.train()
    logs = metrics(run)
    assert len(logs) == 6
    assert {record["pdyn/by_label/bias_like/norm/p"] for record in logs} == {decided.p}
    assert not any("pdyn/control/p" in record for record in logs)
    assert step_hooks(run) == 1

    control = PControlCallback(CONFIG, interval=2)
    resumed = trainer(tmp_path, callbacks=[control], **(options | {"max_steps": 24}))
    with pytest.warns(UserWarning, match="step 12.*no control state.*PControlCallback"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "kept" / "checkpoint-12"))
    exponents = {group["component"]: group["p"] for group in resumed.optimizer.param_groups}
    assert set(exponents.values()) == {control._state.p, 0.4}


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"),
    reason="transformers 5.2 normalises accumulated losses otherwise, with stock AdamW too",
)
@pytest.mark.parametrize("optim_args", ["p=0.5", "p=0.25,update_scale=adam"])
def test_accumulation_in_any_split_is_one_batch(tmp_path: Path, optim_args: str) -> None:
    """1x8 = 2x4 = 8x1, to 1e-5: float32 sums in another order. Adam's epsilon as in the launch matrix."""
    runs = []
    for accumulated in (1, 4, 8):
        run = trainer(
            tmp_path,
            callbacks=everything(),
            per_device_train_batch_size=8 // accumulated,
            gradient_accumulation_steps=accumulated,
            **(COMMON | {"optim_args": optim_args, "adam_epsilon": 1e-6, "trainer_class": Trainer}),
        )
        run.train()
        runs.append(run)
    expected = metrics(runs[0])
    assert len({record["pdyn/control/p"] for record in expected if "pdyn/control/p" in record}) > 1
    for run in runs[1:]:
        for record, wanted in zip(metrics(run), expected, strict=True):
            assert record.keys() == wanted.keys()
            for name, value in record.items():
                # A relative change is the difference of two numbers that are each good to 1e-5.
                assert value == pytest.approx(wanted[name], rel=1e-5, abs=1e-5 if name.endswith("_change") else 1e-9)
        for param, other in zip(run.model.parameters(), runs[0].model.parameters(), strict=True):
            assert (param - other).norm() <= 1e-5 * other.norm()
