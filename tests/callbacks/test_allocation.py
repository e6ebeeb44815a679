"""AllocationCallback in a Trainer: when it measures, what it says, and that nothing depends on it."""

import math
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from hf_pdyn import AllocationCallback, PControlCallback, TelemetryCallback
from hf_pdyn.callbacks import allocation
from hf_pdyn.measure.power_moments import PowerMomentsReader
from hf_pdyn.policy import allocation_curve as curve
from hf_pdyn.policy.algorithm1 import ControlConfig
from hf_pdyn.run_dir.tables import ALLOCATION, read_table
from tests.training import saved_state, trainer, training_logs

NAMES = {f"pdyn/allocation/{name}" for name in ("lr_factor", "cosine_to_adam", "update_ratio_slope", "p_step_factor")}


def train(out: Path, every: int | str = "log", per_layer: bool = False, **options: Any) -> Trainer:
    callbacks = [TelemetryCallback(), AllocationCallback(every, per_layer)]
    run = trainer(out, callbacks=[*callbacks, *options.pop("more", [])], **options)
    run.train(resume_from_checkpoint=options.pop("resume", None))
    return run


def rows(out: Path) -> list[dict[str, Any]]:
    table, problems = read_table(out, ALLOCATION)
    assert not problems
    return table.to_pylist()


def of_pathway(out: Path, pathway: str, step: int) -> curve.PowerMoments:
    (row,) = (
        row
        for row in rows(out)
        if (row["pathway"], row["component"], row["layer"], row["step"]) == (pathway, None, None, step)
    )
    return curve.PowerMoments(tuple(row["log_moments"]))


@pytest.mark.parametrize(
    ("every", "steps", "logged"),
    [("log", [2, 4, 6, 8, 10, 12], [2, 4, 6, 8, 10, 12]), (3, [3, 6, 9, 12], [4, 6, 10, 12]), (100, [], [])],
)
def test_when_it_measures(tmp_path: Path, every: int | str, steps: list[int], logged: list[int]) -> None:
    run = train(tmp_path, every)
    assert sorted({row["step"] for row in rows(tmp_path)}) == steps
    assert [record["step"] for record in training_logs(run.state.log_history) if record.keys() >= NAMES] == logged


def test_numbers_are_those_of_the_update_that_was_taken(tmp_path: Path) -> None:
    """Without decay: the ratio of update norms, measured otherwise, to 1e-5; raw updates are c times Adam's."""
    run = train(tmp_path, optim_args="p=0.3")
    for record in training_logs(run.state.log_history):
        weight, bias_like = (of_pathway(tmp_path, pathway, record["step"]) for pathway in ("weight", "bias_like"))
        assert curve.update_ratio(weight, bias_like, 0.3) == pytest.approx(record["pdyn/update_ratio"], rel=1e-5)
        assert record["pdyn/allocation/lr_factor"] == curve.lr_factor(curve.total([weight, bias_like]), 0.3)
        assert record["pdyn/allocation/lr_factor"] > 1
        assert 0 < record["pdyn/allocation/cosine_to_adam"] < 1
        assert record["pdyn/allocation/p_step_factor"] > 1
        slope = curve.update_ratio_slope(weight, bias_like, 0.3)
        assert record["pdyn/allocation/update_ratio_slope"] == slope


def test_at_adam_s_p_there_is_nothing_to_match(tmp_path: Path) -> None:
    run = train(tmp_path, optim="adamw_torch")
    for record in training_logs(run.state.log_history):
        assert record["pdyn/allocation/lr_factor"] == pytest.approx(1, abs=1e-9)
        assert record["pdyn/allocation/cosine_to_adam"] == pytest.approx(1, abs=1e-9)


def test_rows_of_components_and_layers(tmp_path: Path) -> None:
    train(tmp_path, 12, per_layer=True)
    found = rows(tmp_path)
    components = {(row["pathway"], row["component"]) for row in found if row["component"]}
    assert {("weight", "attention"), ("weight", "mlp"), ("bias_like", "norm")} <= components
    assert {"transformer.h.0.attn.c_attn", "transformer.ln_f"} <= {row["layer"] for row in found}
    assert {row["p"] for row in found} == {0.5}


@pytest.mark.parametrize("every", ["log", 3])
def test_a_resumed_run_has_the_same_rows_and_records(tmp_path: Path, every: int | str) -> None:
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 7, "optim_args": "p=0.3"}
    whole = train(tmp_path / "whole", every, **options)
    shutil.copytree(tmp_path / "whole" / "checkpoint-7", tmp_path / "resumed" / "checkpoint-7")
    resumed = trainer(tmp_path / "resumed", callbacks=[TelemetryCallback(), AllocationCallback(every)], **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "resumed" / "checkpoint-7"))
    expected = [row for row in rows(tmp_path / "whole") if row["step"] > 7]
    assert rows(tmp_path / "resumed") == expected
    for ours, theirs in zip(resumed.state.log_history[:-1], whole.state.log_history[:-1], strict=True):
        assert {name: ours.get(name) for name in NAMES} == {name: theirs.get(name) for name in NAMES}


def test_measuring_does_not_change_the_training(tmp_path: Path) -> None:
    plain = trainer(tmp_path / "plain", optim_args="p=0.3")
    plain.train()
    measured = train(tmp_path / "measured", optim_args="p=0.3", per_layer=True)
    for ours, theirs in zip(measured.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_an_optimizer_without_moments_is_said_once(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="allocation curve: SGD keeps no") as caught:
        run = train(tmp_path, optim="sgd")
    assert sum("allocation" in str(warning.message) for warning in caught) == 1
    assert not any(NAMES & record.keys() for record in run.state.log_history)
    assert rows(tmp_path) == []


def test_an_exponent_beyond_the_curve_leaves_the_rows(tmp_path: Path) -> None:
    run = train(tmp_path, optim_args="p=-0.5", learning_rate=1e-5)
    assert not any(NAMES & record.keys() for record in run.state.log_history)
    assert {row["p"] for row in rows(tmp_path)} == {-0.5}


def test_a_failure_ends_the_curve_and_not_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any) -> None:
        raise MemoryError("none left")

    monkeypatch.setattr(PowerMomentsReader, "read", fail)
    with pytest.warns(UserWarning, match="MemoryError: none left"):
        run = train(tmp_path, "auto", save_strategy="steps", save_steps=12)
    assert run.state.global_step == 12
    assert any("pdyn/D_w" in record for record in run.state.log_history)
    memory = saved_state(tmp_path / "checkpoint-12")["stateful_callbacks"]["pdyn"]["allocation"]
    assert memory["records_to_skip"] == 0  # a resumed run measures again


@pytest.mark.parametrize(
    ("cost", "training", "skipped"),
    [(0.0, 1.0, 0), (0.01, 1.0, 0), (0.011, 1.0, 1), (0.05, 1.0, 4), (1.0, 0.0, 10**11)],
)
def test_records_are_skipped_so_that_the_rest_stays_below_a_hundredth(
    cost: float, training: float, skipped: int
) -> None:
    found = allocation._records_to_skip(cost=cost, training=training)
    assert found == pytest.approx(skipped, rel=1e-6)
    assert cost <= 0.01 * (found + 1) * max(training, 1e-9) * (1 + 1e-9)


def test_auto_skips_records_after_one_that_cost_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    costs = iter([0.035, 0.0])

    class Clock:
        now = 0.0

        @classmethod
        def perf_counter(cls) -> float:
            return cls.now

    measure = AllocationCallback._measure

    def measured(self: Any, state: Any) -> Any:
        Clock.now += next(costs, 0.0)
        return measure(self, state)

    monkeypatch.setattr(allocation, "time", Clock)
    monkeypatch.setattr(AllocationCallback, "_measure", measured)
    monkeypatch.setattr(
        AllocationCallback, "on_step_begin", lambda *_, **__: setattr(Clock, "now", Clock.now + 0.5), raising=False
    )
    train(tmp_path, "auto")
    # 1 s a record: 3.5 % is paid for by leaving out three.
    assert sorted({row["step"] for row in rows(tmp_path)}) == [2, 10, 12]


def test_what_a_checkpoint_cannot_hold_starts_anew(tmp_path: Path) -> None:
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 6}
    train(tmp_path, **options)
    path = tmp_path / "checkpoint-6" / "trainer_state.json"
    memory = saved_state(tmp_path / "checkpoint-6")["stateful_callbacks"]["pdyn"]["allocation"]
    assert memory == {"step": 6, "unlogged": {}, "records_to_skip": 0}
    path.write_text(path.read_text().replace('"records_to_skip": 0', '"records_to_skip": -1'))
    run = trainer(tmp_path, callbacks=[AllocationCallback("log")], **options)
    with pytest.warns(UserWarning, match="records_to_skip.*-1.*anew"):
        run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert run.state.global_step == 12


def control(out: Path, optim_args: str, **options: Any) -> Trainer:
    config = ControlConfig(p_min=0.1, p_max=0.6, p_step=0.05, threshold=1.01)
    run = trainer(out, callbacks=[PControlCallback(config, interval=2)], optim_args=optim_args, **options)
    run.train()
    return run


@pytest.mark.filterwarnings("default:Algorithm 1 moved p")
def test_control_says_what_a_decision_does_to_raw_updates(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"moved p from .*update_scale=adam") as caught:
        control(tmp_path, "p=0.4", max_steps=24)
    (warning,) = (str(w.message) for w in caught if "moved p" in str(w.message))
    factor = float(warning.split("every update by ")[1].split(":")[0])
    assert not math.isclose(factor, 1, rel_tol=0.04)


@pytest.mark.filterwarnings("ignore:Algorithm 1 cannot move p", "ignore:Control")
def test_a_decision_that_no_step_uses_multiplies_nothing(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    run = control(tmp_path, "p=0.4", max_steps=4)
    assert run.optimizer.param_groups[0]["p"] != 0.4
    assert not [warning for warning in recwarn if "moved p" in str(warning.message)]


@pytest.mark.filterwarnings("error:Algorithm 1 moved p")
def test_control_of_matched_updates_says_nothing(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        run = control(tmp_path, "p=0.4,update_scale=adam", max_steps=24)
    assert run.optimizer.param_groups[0]["p"] != 0.4
