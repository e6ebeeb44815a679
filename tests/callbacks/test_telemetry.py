import json
import math
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

from hf_pdyn import (
    Padam,
    PControlCallback,
    StepStatistics,
    TelemetryCallback,
    WeightDecayShutoffCallback,
    build_param_groups,
    label_parameters,
)
from hf_pdyn.callbacks.base import TrainingRun
from hf_pdyn.report.recorded_run import MEAN
from hf_pdyn.run_dir.tables import LAYERS, read_table
from hf_pdyn.theory.modified_flow import bias_coefficient
from tests.synchronisation import meta_guard
from tests.training import arguments, gpt2, saved_state, token_blocks, trainer, training_logs

OPTIMIZERS = ["padam", "adamw_torch", "adamw_torch_fused", "sgd"]


class Recorder(TrainerCallback):
    """The unclipped gradients and updates of every step, taken independently of the plugin."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.labels = label_parameters(model)
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.updates: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        params = dict(model.named_parameters())
        self.gradients.append({name: param.grad.double().clone() for name, param in params.items()})
        self.before = {name: param.detach().double().clone() for name, param in params.items()}

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        params = dict(model.named_parameters())
        self.updates.append({name: param.detach().double() - self.before[name] for name, param in params.items()})

    def norms(self, of: list[dict[str, torch.Tensor]], pathway: str) -> list[float]:
        return [
            math.sqrt(
                sum(value.square().sum().item() for n, value in step.items() if self.labels[n].pathway == pathway)
            )
            for step in of
        ]


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_norms_equal_those_measured_by_hand(tmp_path: Path, optim: str) -> None:
    """To 1e-5: float32 sums. The update norm of the second of two steps is the measured one."""
    model = gpt2()
    recorder = Recorder(model)
    run = trainer(tmp_path, model, optim=optim, max_grad_norm=0.0, callbacks=[TelemetryCallback(), recorder])
    run.train()
    logs = training_logs(run.state.log_history)
    assert len(logs) == 6
    for i, record in enumerate(logs):
        for letter, pathway in (("w", "weight"), ("b", "bias_like")):
            gradients = recorder.norms(recorder.gradients, pathway)[2 * i : 2 * i + 2]
            assert record[f"pdyn/D_{letter}"] == pytest.approx(sum(gradients) / 2, rel=1e-5)
            assert record[f"pdyn/D_{letter}_clipped"] == record[f"pdyn/D_{letter}"]
            update = recorder.norms(recorder.updates, pathway)[2 * i + 1]
            assert record[f"pdyn/update_norm/{pathway}"] == pytest.approx(update, rel=1e-3)
        assert record["pdyn/G_w_over_G_b"] == pytest.approx(record["pdyn/D_w"] / record["pdyn/D_b"])
        ratio = record["pdyn/update_norm/weight"] / record["pdyn/update_norm/bias_like"]
        assert record["pdyn/update_ratio"] == pytest.approx(ratio)


def test_the_final_record_has_the_steps_since_the_last_one(tmp_path: Path) -> None:
    model = gpt2()
    recorder = Recorder(model)
    run = trainer(tmp_path, model, logging_steps=5, max_grad_norm=0.0, callbacks=[TelemetryCallback(), recorder])
    run.train()
    final = run.state.log_history[-1]
    assert "train_runtime" in final
    gradients = recorder.norms(recorder.gradients, "weight")[10:]
    assert final["pdyn/D_w"] == pytest.approx(sum(gradients) / 2, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "covered"),
    [({}, {5: 5, 10: 5, 12: 2}), ({"logging_first_step": True}, {1: 1, 5: 4, 10: 5, 12: 2})],
    ids=["steps", "first step"],
)
def test_a_record_says_how_many_steps_it_covers(
    tmp_path: Path, options: dict[str, Any], covered: dict[int, int]
) -> None:
    run = trainer(tmp_path, logging_steps=5, callbacks=[TelemetryCallback()], **options)
    run.train()
    assert {r["step"]: r["pdyn/steps"] for r in run.state.log_history if "pdyn/steps" in r} == covered
    resumed = trainer(
        tmp_path / "resumed",
        logging_steps=5,
        callbacks=[TelemetryCallback()],
        save_steps=8,
        save_strategy="steps",
        **options,
    )
    resumed.train()
    resumed = trainer(tmp_path / "resumed", logging_steps=5, callbacks=[TelemetryCallback()], **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "resumed" / "checkpoint-8"))
    assert {r["step"]: r["pdyn/steps"] for r in resumed.state.log_history if "pdyn/steps" in r} == covered


def test_every_mean_of_a_record_is_known_to_reports(tmp_path: Path) -> None:
    """Whose pattern stands in a room without torch."""
    run = trainer(tmp_path, callbacks=[TelemetryCallback(per_layer=True)], weight_decay=0.1)
    run.train()
    means = {name for name in training_logs(run.state.log_history)[-1] if MEAN.fullmatch(name)}
    others = {"pdyn/steps", "pdyn/skipped_steps", "pdyn/nonfinite_steps"}
    logged = {name for name in training_logs(run.state.log_history)[-1] if name.startswith("pdyn/")}
    settings = {name for name in logged if name.split("/")[-1] in ("p", "weight_decay", "a_t")}
    assert means == logged - others - settings and {"pdyn/D_w", "pdyn/param_norm/bias_like"} <= means


def test_clipping_is_divided_out(tmp_path: Path) -> None:
    """D_w, D_b are those of the unclipped gradients, which the clipping run's own log confirms."""
    run = trainer(tmp_path, max_grad_norm=0.05, logging_steps=1, callbacks=[TelemetryCallback()])
    run.train()
    for record in training_logs(run.state.log_history):
        assert record["grad_norm"] > 0.05
        assert math.hypot(record["pdyn/D_w"], record["pdyn/D_b"]) == pytest.approx(record["grad_norm"], rel=1e-5)
        assert math.hypot(record["pdyn/D_w_clipped"], record["pdyn/D_b_clipped"]) == pytest.approx(0.05, rel=1e-3)


def test_second_moments_and_perturbed_norms(tmp_path: Path) -> None:
    model = gpt2()
    recorder = Recorder(model)
    run = trainer(
        tmp_path, model, optim_args="p=0.25,eps=1e-10", max_grad_norm=0.0, callbacks=[TelemetryCallback(), recorder]
    )
    run.train()
    (last,) = training_logs(run.state.log_history)[-1:]
    optimizer, params = run.optimizer.optimizer, dict(model.named_parameters())
    for pathway in ("weight", "bias_like"):
        names = [name for name, label in recorder.labels.items() if label.pathway == pathway]
        grads = torch.cat([recorder.gradients[-1][name].flatten() for name in names])
        v_hat = torch.cat([optimizer.state[params[n]]["exp_avg_sq"].double().flatten() for n in names]) / (
            1 - 0.999**12
        )
        theta = torch.cat([params[name].detach().double().flatten() for name in names])
        expected = {
            "v_hat_mean": v_hat.mean(),
            "param_norm": theta.norm(),
            "one_norm": (grads**2 + 1e-10).sqrt().sum(),
            "N_p": ((grads**2 + 1e-10) ** 0.75).sum() / 1.5,
        }
        for name, value in expected.items():
            assert last[f"pdyn/{name}/{pathway}"] == pytest.approx(value.item(), rel=1e-5), name


def test_other_optimizers_have_the_exponent_they_equal(tmp_path: Path) -> None:
    metrics = {}
    for optim in ("adamw_torch", "sgd"):
        run = trainer(tmp_path, optim=optim, max_steps=2, max_grad_norm=0.0, callbacks=[TelemetryCallback()])
        run.train()
        metrics[optim] = training_logs(run.state.log_history)[0]
    adamw, sgd = metrics["adamw_torch"], metrics["sgd"]
    assert adamw["pdyn/N_p/weight"] == pytest.approx(adamw["pdyn/one_norm/weight"])
    assert "pdyn/v_hat_mean/weight" in adamw
    # p=0: N_p is half the squared norm of the one measured step; D_w is a mean over two.
    assert sgd["pdyn/N_p/weight"] == pytest.approx(sgd["pdyn/D_w"] ** 2 / 2, rel=0.5)
    assert not {"pdyn/v_hat_mean/weight", "pdyn/p"} & set(sgd)
    assert adamw["pdyn/implicit_bias/weight"] < 0 < sgd["pdyn/implicit_bias/weight"]


def test_the_implicit_bias_of_pathways_and_layers(tmp_path: Path) -> None:
    """The formula at the measured step, where v_hat >> eps: all 12 have been, and the last has the lr of its record."""
    run = trainer(
        tmp_path,
        optim_args="p=0.3,p.norm=-0.2,eps=1e-30",
        adam_beta2=0.95,
        callbacks=[TelemetryCallback(per_layer=True)],
    )
    run.train()
    (last,) = training_logs(run.state.log_history)[-1:]
    lr = 1e-3 / 12  # the last step's, of a schedule that falls linearly to 0
    coefficient = {p: bias_coefficient(1.0, lr=lr, betas=(0.9, 0.95), p=p, steps_done=11) for p in (0.3, -0.2)}
    assert last["pdyn/implicit_bias/weight"] == pytest.approx(coefficient[0.3], rel=1e-6)
    table, _ = read_table(tmp_path, LAYERS)
    rows = [row for row in table.to_pylist() if row["name"] == "implicit_bias" and row["step"] == 12]
    bias_like = {row["layer"]: row["value"] for row in rows if row["part"] == "bias_like"}
    expected = {layer: coefficient[-0.2 if ".ln_" in layer else 0.3] for layer in bias_like}
    # The gradient of attention's key biases is rounding alone, and not far above the root of eps.
    assert bias_like == pytest.approx(expected, rel=1e-4)
    # A mean over the elements of both kinds of groups.
    assert coefficient[0.3] < last["pdyn/implicit_bias/bias_like"] < coefficient[-0.2]


def test_an_optimizer_without_an_implicit_bias_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = trainer(tmp_path, optim="rmsprop", callbacks=[TelemetryCallback()])
    run.train()
    said = [record.message for record in caplog.records if "implicit_bias" in record.message]
    assert len(said) == 1 and said[0].startswith("pdyn/implicit_bias is left out: RMSprop is no p-update")
    assert not any("implicit_bias" in name for record in run.state.log_history for name in record)


def test_settings_and_cumulative_decay(tmp_path: Path) -> None:
    run = trainer(
        tmp_path,
        weight_decay=0.1,
        optim_args="p=0.3,p.norm=0",
        lr_scheduler_type="constant",
        callbacks=[TelemetryCallback(per_layer=True)],
    )
    run.train()
    last = training_logs(run.state.log_history)[-1]
    assert last["pdyn/p"] == last["pdyn/by_label/weight/p"] == last["pdyn/by_label/bias_like/mlp/p"] == 0.3
    assert last["pdyn/by_label/bias_like/norm/p"] == 0.0
    assert last["pdyn/weight_decay"] == last["pdyn/by_label/weight/weight_decay"] == 0.1
    assert last["pdyn/by_label/bias_like/weight_decay"] == 0.0
    assert last["pdyn/by_label/weight/a_t"] == pytest.approx(-12 * 1e-3 * 0.1)
    assert last["pdyn/skipped_steps"] == last["pdyn/nonfinite_steps"] == 0


def test_layers_on_request_add_up_to_the_whole(tmp_path: Path) -> None:
    run = trainer(tmp_path, callbacks=[TelemetryCallback(per_layer=True)], logging_steps=1, max_steps=2)
    run.train()
    record = training_logs(run.state.log_history)[-1]
    assert not any("layer" in key for key in record)
    table, problems = read_table(tmp_path, LAYERS)
    assert not problems
    assert set(table["step"].to_pylist()) == {1, 2}
    rows = [row for row in table.to_pylist() if row["step"] == 2]
    found = {(row["layer"], row["part"], row["name"]): row["value"] for row in rows}
    assert len(found) == len(rows)
    assert ("transformer.h.0.attn.c_attn", "weight", "grad_norm") in found
    assert ("transformer.h.1.ln_1", "bias_like", "update_norm") in found
    for letter, pathway in (("w", "weight"), ("b", "bias_like")):
        parts = [v for (_, part, name), v in found.items() if (part, name) == (pathway, "grad_norm")]
        assert math.sqrt(sum(v**2 for v in parts)) == pytest.approx(record[f"pdyn/D_{letter}"], rel=1e-6)
    plain = trainer(tmp_path / "plain", callbacks=[TelemetryCallback()], max_steps=2)
    plain.train()
    assert not LAYERS.folder(tmp_path / "plain").exists()


TRACKED = """
import sys
from hf_pdyn import TelemetryCallback
from tests.training import trainer

local = {"report_to": ["trackio"], "run_name": "of a test", "trackio_space_id": None}  # transformers 5.2 would upload
run = trainer(sys.argv[1], callbacks=[TelemetryCallback(per_layer=True)], **local)
run.train()
run.save_state()
"""


def test_trackio_s_local_store_has_the_metrics(tmp_path: Path) -> None:
    """Read from its database: its Python interface lists runs, not what they logged (0.43)."""
    pytest.importorskip("trackio")
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio")}  # read where it is imported
    subprocess.run([sys.executable, "-c", TRACKED, str(tmp_path / "run")], check=True, env=environment, timeout=200)
    (database,) = (tmp_path / "trackio").glob("*.db")
    with closing(sqlite3.connect(database)) as connection:
        stored = [json.loads(text) for (text,) in connection.execute("SELECT metrics FROM metrics ORDER BY id")]
    logs = training_logs(saved_state(tmp_path / "run")["log_history"])
    written = [record for record in stored if "train/loss" in record]
    assert len(written) == len(logs) == 6
    for record, logged in zip(written, logs, strict=True):
        ours = {f"train/{name}": value for name, value in logged.items() if name.startswith("pdyn/")}
        assert {name: value for name, value in record.items() if "pdyn" in name} == ours


def test_every_reporter_sees_every_metric(tmp_path: Path) -> None:
    """A user's callback stands behind the reporters when it is added; TensorBoard is read back from its files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = trainer(
        tmp_path,
        report_to=["tensorboard"],
        eval_strategy="steps",
        eval_steps=6,
        save_strategy="steps",
        save_steps=12,
        callbacks=[TelemetryCallback()],
    )
    run.add_callback(_Late())
    run.train()
    logs = training_logs(run.state.log_history)
    names = {name for record in logs for name in record if name.startswith("pdyn/")}
    assert {"pdyn/D_w", "pdyn/D_b", "pdyn/G_w_over_G_b", "pdyn/p", "pdyn/a_t", "pdyn/update_ratio"} <= names
    for record in logs:
        assert all(type(value) is float or type(value) is int for value in record.values())
        assert all(math.isfinite(value) for value in record.values())
    on_disk = json.loads((tmp_path / "checkpoint-12" / "trainer_state.json").read_text())["log_history"]
    assert training_logs(on_disk) == logs

    (events,) = {path.parent for path in tmp_path.rglob("events.out.tfevents.*")}
    accumulator = EventAccumulator(str(events))
    accumulator.Reload()
    tags = set(accumulator.Tags()["scalars"])
    assert {f"train/{name}" for name in names} <= tags
    written = {event.step: event.value for event in accumulator.Scalars("train/pdyn/D_w")}
    assert written == pytest.approx({record["step"]: record["pdyn/D_w"] for record in logs}, rel=1e-6)
    assert not any("pdyn" in name for record in run.state.log_history if "eval_loss" in record for name in record)


class _Late(TrainerCallback):
    """Stands last, as a user's own callback might."""


def test_a_nonfinite_gradient_is_counted_and_left_out(tmp_path: Path) -> None:
    class Poison(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if state.global_step == 2:
                next(model.parameters()).grad[0, 0] = math.nan

    run = trainer(tmp_path, logging_steps=3, max_steps=3, max_grad_norm=0.0, callbacks=[TelemetryCallback(), Poison()])
    run.train()
    record = training_logs(run.state.log_history)[0]
    assert record["pdyn/nonfinite_steps"] == 1
    assert math.isfinite(record["pdyn/D_w"])


def test_measuring_does_not_change_the_training(tmp_path: Path) -> None:
    for optim in OPTIMIZERS:
        results = []
        for callbacks in ([], [TelemetryCallback(every=1, per_layer=True)]):
            run = trainer(tmp_path, optim=optim, callbacks=callbacks)
            run.train()
            results.append(torch.cat([param.detach().flatten() for param in run.model.parameters()]))
        assert torch.equal(*results), optim


def test_a_failing_measurement_does_not_end_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr("hf_pdyn.measure.step_statistics.norms.two_norms", fail)
    run = trainer(tmp_path, optim="sgd", callbacks=[TelemetryCallback()])
    with pytest.warns(UserWarning, match="RuntimeError: out of luck"):
        run.train()
    assert run.state.global_step == 12
    assert not any("pdyn/D_w" in record for record in run.state.log_history)


def test_training_twice_and_evaluating_between(tmp_path: Path) -> None:
    run = trainer(tmp_path, weight_decay=0.1, callbacks=[TelemetryCallback()], lr_scheduler_type="constant")
    run.train()
    run.evaluate()
    run.train()
    logs = training_logs(run.state.log_history)
    assert len(logs) == 6
    assert logs[-1]["pdyn/a_t"] == pytest.approx(-12 * 1e-3 * 0.1)


def test_bad_interval() -> None:
    with pytest.raises(ValueError, match="at least 1 optimizer step, got 0"):
        TelemetryCallback(every=0)


@pytest.mark.parametrize(
    "options",
    [
        {"logging_strategy": "epoch", "max_steps": 16},
        {"logging_steps": 0.25},
        {"logging_steps": 100, "logging_first_step": True},
        {"logging_steps": 3, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
    ],
    ids=str,
)
def test_every_record_has_measured_quantities(tmp_path: Path, options: dict[str, Any]) -> None:
    run = trainer(tmp_path, callbacks=[TelemetryCallback()], **options)
    run.train()
    logs = training_logs(run.state.log_history)
    assert logs
    assert all("pdyn/update_norm/weight" in record and "pdyn/D_w" in record for record in logs)


@pytest.mark.parametrize(
    ("options", "measured"), [({"logging_steps": 5}, 3), ({"logging_steps": 500}, 1), ({"logging_strategy": "no"}, 1)]
)
def test_the_closing_record_has_measured_quantities_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], measured: int
) -> None:
    """Of 12 steps; those that no record needs are not measured."""
    asked: list[None] = []
    measure = StepStatistics.measure_next_step
    monkeypatch.setattr(StepStatistics, "measure_next_step", lambda self: (asked.append(None), measure(self))[1])
    run = trainer(tmp_path, callbacks=[TelemetryCallback()], **options)
    run.train()
    last = [record for record in run.state.log_history if "pdyn/D_w" in record][-1]
    assert last["step"] == 12 and last["pdyn/update_norm/weight"] > 0
    assert len(asked) == measured


@pytest.mark.parametrize(
    ("optim", "optim_args", "said"),
    [
        (
            "adamw_torch",
            "p=0.4, lr_mult.norm=2",
            "optim_args has p=0.4, lr_mult.norm=2, which only --optim padam reads",
        ),
        ("adamw_torch", None, None),
        ("padam", "p=0.4", None),
        ("adafactor", "scale_parameter=False", None),
    ],
)
def test_settings_of_padam_that_another_optimizer_never_reads_are_said(
    tmp_path: Path, optim: str, optim_args: str | None, said: str | None, recwarn: pytest.WarningsRecorder
) -> None:
    trainer(tmp_path, callbacks=[TelemetryCallback()], optim=optim, optim_args=optim_args).train()
    found = [str(warning.message) for warning in recwarn if "only --optim padam reads" in str(warning.message)]
    assert [said is not None and text.startswith(said) for text in found] == ([True] if said else [])


@pytest.mark.parametrize(
    "broken",
    [
        "callbacks.telemetry.StepStatistics.of",
        "callbacks.telemetry.Window.state_dict",
        "callbacks.telemetry.Window.read",
        "measure.step_statistics.take_clip",
        "measure.step_statistics.clip_factor",
        "measure.windows.Window._fold_gradients",
    ],
)
@pytest.mark.parametrize("optim", ["padam", "adamw_torch"])
def test_no_failure_of_telemetry_ends_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, optim: str
) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr("hf_pdyn.measure.windows._FOLD_AFTER", 3)
    run = trainer(tmp_path, optim=optim, save_strategy="steps", save_steps=6, callbacks=[TelemetryCallback()])
    if "take_clip" in broken:  # not where a window begins
        run.add_callback(Breaking(monkeypatch, f"hf_pdyn.{broken}", fail))
    else:
        monkeypatch.setattr(f"hf_pdyn.{broken}", fail)
    with pytest.warns(UserWarning, match="out of luck") as said:
        run.train()
    assert len(said) == 1
    assert run.state.global_step == 12


class Breaking(TrainerCallback):
    """Replaces a function once training has begun."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, replacement: Any) -> None:
        self.replace = lambda: monkeypatch.setattr(name, replacement)

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.replace()


def test_other_layers_at_resume_start_the_interval_anew(tmp_path: Path) -> None:
    options = {"optim": "adamw_torch", "save_strategy": "steps", "save_steps": 8, "logging_steps": 5}
    trainer(tmp_path, callbacks=[TelemetryCallback()], **options).train()
    path = tmp_path / "checkpoint-8" / "trainer_state.json"
    state = json.loads(path.read_text())
    state["stateful_callbacks"]["pdyn"]["telemetry"]["window"]["grad_norm"].append(1.0)
    path.write_text(json.dumps(state))
    run = trainer(tmp_path, callbacks=[TelemetryCallback()], **options)
    with pytest.warns(UserWarning, match="other parameters are trained"):
        run.train(resume_from_checkpoint=str(path.parent))
    assert "pdyn/D_w" in training_logs(run.state.log_history)[-1]


def test_clipping_of_another_run_does_not_leak(tmp_path: Path) -> None:
    trainer(tmp_path, callbacks=[TelemetryCallback()], max_steps=2).train()
    trainer(tmp_path, max_grad_norm=1e-3, max_steps=2).train()
    model = gpt2()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    window = StepStatistics(optimizer, model).window()
    tokens = torch.arange(12)[None]
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    reading = window.read()
    assert reading.grad_norm == reading.grad_norm_clipped


def test_a_total_norm_that_overflows_is_a_nonfinite_step(tmp_path: Path) -> None:
    class Blow(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            self.hook = next(model.parameters()).register_hook(
                lambda g: g * 0 + (1e25 if state.global_step == 2 else 0)
            )

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.hook.remove()

    run = trainer(tmp_path, logging_steps=4, max_steps=4, callbacks=[TelemetryCallback(), Blow()])
    run.train()
    record = training_logs(run.state.log_history)[0]
    assert record["pdyn/nonfinite_steps"] == 1
    assert math.isfinite(record["pdyn/D_w"])


def test_an_iterable_dataset_without_length(tmp_path: Path) -> None:
    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self) -> Any:
            yield from token_blocks()

    for options in ({"logging_strategy": "epoch"}, {}):
        run = trainer(tmp_path, callbacks=[TelemetryCallback(), PControlCallback(interval=3)], max_steps=12, **options)
        run.train_dataset = Endless()
        run.train()
        logs = training_logs(run.state.log_history)
        assert logs
        assert all("pdyn/update_norm/weight" in record for record in logs)
    run = trainer(tmp_path, callbacks=[WeightDecayShutoffCallback("epoch:1")], max_steps=12, weight_decay=0.1)
    run.train_dataset = Endless()
    with pytest.raises(ValueError, match="no length.*epoch:1"):
        run.train()


def test_a_step_count_that_is_an_int_is_understood(tmp_path: Path) -> None:
    class CountsInInts(torch.optim.AdamW):
        def step(self, closure: Any = None) -> Any:
            for state in self.state.values():
                state["step"] = torch.as_tensor(state["step"])
            loss = super().step(closure)
            for state in self.state.values():
                state["step"] = int(state["step"])
            return loss

    model = gpt2()
    run = trainer(tmp_path, model, optimizers=(CountsInInts(model.parameters()), None), callbacks=[TelemetryCallback()])
    run.train()
    assert all("pdyn/v_hat_mean/weight" in record for record in training_logs(run.state.log_history))


def test_a_statistics_of_one_s_own_beside_telemetry(tmp_path: Path) -> None:
    model = gpt2()
    optimizer = Padam(build_param_groups(model))
    own = StepStatistics.of(optimizer, model)
    window = own.window()
    run = trainer(tmp_path, model, optimizers=(optimizer, None), callbacks=[TelemetryCallback(every=1)], max_steps=2)
    run.train()
    assert window.read().measured_steps == 2
    assert "pdyn/update_norm/weight" in training_logs(run.state.log_history)[0]


@pytest.mark.filterwarnings("ignore:Seems like `optimizer.step\\(\\)` has been overridden:UserWarning")
def test_skipped_steps_are_counted_and_change_nothing_else(tmp_path: Path) -> None:
    """Three steps that a gradient scaler would have skipped: the optimizer's step is not called at all."""

    class Overflow(TrainerCallback):
        def on_pre_optimizer_step(
            self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any
        ) -> None:
            skips = state.global_step in (0, 1, 4)
            optimizer._is_overflow = skips
            optimizer.step = (lambda closure=None: None) if skips else type(optimizer).step.__get__(optimizer)

    control = PControlCallback(interval=3)
    run = trainer(tmp_path, logging_steps=1, max_steps=6, callbacks=[TelemetryCallback(), control, Overflow()])
    run.train()
    logs = training_logs(run.state.log_history)
    assert [record.get("pdyn/skipped_steps") for record in logs] == [1, 2, 2, 2, 3, 3]
    assert ["pdyn/D_w" in record for record in logs] == [False, False, True, True, False, True]
    assert control._state.interval == 1  # three steps were taken
    assert {state["step"].item() for state in run.optimizer.state.values()} == {3.0}


def test_a_learning_rate_that_is_a_tensor(tmp_path: Path) -> None:
    """The scheduler fills it in place; a_t is of what each step had."""
    model = gpt2()
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(1e-3), weight_decay=0.1)
    run = trainer(tmp_path, model, optimizers=(optimizer, None), callbacks=[TelemetryCallback()], logging_steps=6)
    run.train()
    decays = [record["pdyn/a_t"] for record in training_logs(run.state.log_history)]
    assert decays == pytest.approx([-0.1 * 1e-3 * sum(1 - step / 12 for step in range(n)) for n in (6, 12)], rel=1e-5)


def test_a_learning_rate_on_the_device_is_not_read_at_every_step(tmp_path: Path) -> None:
    model = gpt2().to("meta")
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    optimizer.param_groups[0]["lr"] = torch.tensor(1e-3, device="meta")
    telemetry = TelemetryCallback()
    telemetry.run = TrainingRun(optimizer, model, total_steps=12, steps_per_epoch=8)
    telemetry.begin(arguments(tmp_path), TrainerState())
    with meta_guard():
        telemetry.on_optimizer_step(arguments(tmp_path), TrainerState(), TrainerControl())
    assert telemetry._clock.lowest("") == -math.inf


@pytest.mark.parametrize("optim", ["adamw_torch", "padam"])
def test_where_only_biases_train_the_first_group_is_empty(tmp_path: Path, optim: str) -> None:
    model = gpt2()
    for name, param in model.named_parameters():
        param.requires_grad = name.endswith("bias")
    optim_args = {"optim_args": "p=0.25,update_scale=adam"} if optim == "padam" else {}
    run = trainer(tmp_path, model, optim=optim, max_steps=4, callbacks=[TelemetryCallback()], **optim_args)
    run.train()
    record = training_logs(run.state.log_history)[-1]
    assert record["pdyn/D_b"] == pytest.approx(record["grad_norm"], rel=0.5)
    assert "pdyn/D_w" not in record


def test_a_t_of_sgd_counts_its_momentum(tmp_path: Path) -> None:
    model = gpt2()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    run = trainer(tmp_path, model, optimizers=(optimizer, schedule), callbacks=[TelemetryCallback()])
    run.train()
    assert training_logs(run.state.log_history)[-1]["pdyn/a_t"] == pytest.approx(-10 * 12 * 1e-3 * 0.1)


def test_coupled_decay_under_padam_has_no_a_t_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor does the run that goes on from its checkpoint after decay was switched off."""
    options = {"weight_decay": 0.1, "optim_args": "decoupled_weight_decay=false", "logging_steps": 4}
    steps = {"save_strategy": "steps", "save_steps": 8}
    caplog.set_level("WARNING", "hf_pdyn")
    run = trainer(tmp_path, callbacks=[TelemetryCallback()], **options, **steps)
    run.train()
    assert [record for record in run.state.log_history if "pdyn/a_t" in record] == []
    said = [record.getMessage() for record in caplog.records if "a_t" in record.getMessage()]
    assert said == [
        "pdyn/a_t is left out from here on: weight decay that TrainerPadam adds to the gradient has no mirror time; "
        "decouple it."
    ]
    shutoff = WeightDecayShutoffCallback(at=8)
    resumed = trainer(tmp_path, callbacks=[TelemetryCallback(), shutoff], **options, **steps)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    logs = training_logs(resumed.state.log_history)
    assert logs[-1]["pdyn/weight_decay"] == 0
    assert not any("pdyn/a_t" in record for record in logs)


def test_an_optimizer_that_finds_its_own_learning_rate_has_no_a_t(tmp_path: Path) -> None:
    from transformers.optimization import Adafactor

    model = gpt2()
    optimizer = Adafactor(model.parameters(), lr=None, relative_step=True, scale_parameter=True, warmup_init=True)
    other = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(other)
    other.step()
    run = trainer(tmp_path, model, optimizers=(optimizer, schedule), max_steps=4, callbacks=[TelemetryCallback()])
    run.train()
    record = training_logs(run.state.log_history)[-1]
    assert "pdyn/D_w" in record
    assert "pdyn/a_t" not in record


def test_a_record_of_the_script_s_own_ends_no_interval(tmp_path: Path) -> None:
    class Logs(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1:
                run.log({"loss": 1.0})

    run = trainer(tmp_path, logging_steps=2, max_steps=2, callbacks=[TelemetryCallback(), Logs()])
    run.train()
    own, record = run.state.log_history[:2]
    assert not any(name.startswith("pdyn/") for name in own)
    assert "pdyn/D_w" in record
