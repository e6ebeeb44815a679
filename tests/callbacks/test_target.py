"""PTargetCallback in a Trainer: it reaches its target, holds it, resumes exactly, and refuses what cannot be."""

import functools
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from hf_pdyn import AllocationCallback, GroupRulesCallback, PControlCallback, PTargetCallback, TelemetryCallback
from hf_pdyn.measure.power_moments import PowerMomentsReader
from hf_pdyn.policy.algorithm1 import ControlConfig
from tests.training import saved_state, trainer, training_logs

WIDE = ControlConfig(p_min=-0.3, p_max=0.9, p_step=0.5)


def train(out: Path, target: str = "update_ratio=3", *, label: str | None = None, **options: Any) -> Trainer:
    config = options.pop("config", WIDE)
    callbacks = [PTargetCallback(target, config, label, options.pop("interval", 2)), TelemetryCallback(every=1)]
    run = trainer(out, callbacks=callbacks, **{"logging_steps": 1, "optim_args": "p=0.4", **options})
    run.train()
    return run


def logged(run: Trainer, name: str) -> list[float]:
    return [record[name] for record in training_logs(run.state.log_history) if name in record]


@pytest.mark.parametrize("optim_args", ["p=0.4", "p=0.4,update_scale=adam"])
@pytest.mark.parametrize("wanted", [3.0, 4.0])
def test_the_update_gets_what_was_wanted(tmp_path: Path, wanted: float, optim_args: str) -> None:
    """On average: between a decision and the next update a step changes the moments, here by up to 30 %."""
    run = train(tmp_path, f"update_ratio={wanted:g}", optim_args=optim_args)
    assert logged(run, "pdyn/target/expected") == pytest.approx([wanted] * 6, rel=1e-6)
    after = [record["pdyn/update_ratio"] for record in training_logs(run.state.log_history)[2::2]]
    assert sum(after) / len(after) == pytest.approx(wanted, rel=0.15)
    assert len(set(logged(run, "pdyn/p"))) > 2


def test_bias_share_and_learning_rate_factor(tmp_path: Path) -> None:
    share = train(tmp_path / "share", "bias_share=0.05")
    assert logged(share, "pdyn/target/expected") == pytest.approx([0.05] * 6, rel=1e-6)
    factor = train(tmp_path / "factor", "lr_factor=2")
    assert logged(factor, "pdyn/target/expected") == pytest.approx([2.0] * 6, rel=1e-6)


def test_p_moves_by_no_more_than_a_step_and_within_its_limits(tmp_path: Path) -> None:
    config = ControlConfig(p_min=0.38, p_max=0.45, p_step=0.02)
    run = train(tmp_path, "lr_factor=0.001", config=config)
    assert logged(run, "pdyn/target/p") == pytest.approx([0.42, 0.44, 0.45, 0.45, 0.45, 0.45])


def test_hold_is_the_value_after_warm_up(tmp_path: Path) -> None:
    run = train(tmp_path, "update_ratio=hold", warmup_steps=5, max_steps=16)
    steps = [record["step"] for record in training_logs(run.state.log_history) if "pdyn/target/wanted" in record]
    assert steps == [6, 8, 10, 12, 14, 16]
    assert len(set(logged(run, "pdyn/target/wanted"))) == 1
    assert logged(run, "pdyn/target/found")[0] == logged(run, "pdyn/target/wanted")[0]
    assert logged(run, "pdyn/target/p")[0] == pytest.approx(0.4, abs=1e-6)


def test_one_label_alone_follows(tmp_path: Path) -> None:
    run = train(tmp_path, "bias_share=0.002", label="norm", optim_args="p=0.5")
    p = {(group["pathway"], group["component"]): group["p"] for group in run.optimizer.param_groups}
    assert {value for label, value in p.items() if label[1] != "norm"} == {0.5}
    assert p["bias_like", "norm"] != 0.5


@pytest.mark.parametrize("target", ["update_ratio=3", "update_ratio=hold"])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, target: str) -> None:
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 7, "interval": 3, "logging_steps": 2}
    whole = train(tmp_path / "whole", target, **dict(options))
    shutil.copytree(tmp_path / "whole" / "checkpoint-7", tmp_path / "resumed" / "checkpoint-7")
    interval = options.pop("interval")
    callbacks = [PTargetCallback(target, WIDE, interval=interval), TelemetryCallback(every=1)]
    resumed = trainer(tmp_path / "resumed", callbacks=callbacks, **{"optim_args": "p=0.4", **options})
    resumed.train(resume_from_checkpoint=str(tmp_path / "resumed" / "checkpoint-7"))
    ours, theirs = (training_logs(run.state.log_history) for run in (resumed, whole))
    assert [{k: v for k, v in record.items() if k.startswith("pdyn")} for record in ours] == [
        {k: v for k, v in record.items() if k.startswith("pdyn")} for record in theirs
    ]
    for param, expected in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(param, expected)


def test_a_second_training_begins_at_the_initial_p(tmp_path: Path) -> None:
    run = train(tmp_path, "update_ratio=3")
    assert run.optimizer.param_groups[0]["p"] != 0.4
    run.train()
    assert training_logs(run.state.log_history)[0]["pdyn/p"] == 0.4


@pytest.mark.parametrize(
    ("key", "value"), [("wanted", "-1"), ("wanted", '"3"'), ("steps", "-1"), ("steps", "true"), ("unlogged", "[]")]
)
def test_what_a_checkpoint_cannot_hold_is_refused(tmp_path: Path, key: str, value: str) -> None:
    train(tmp_path, save_strategy="steps", save_steps=6)
    path = tmp_path / "checkpoint-6" / "trainer_state.json"
    text, memory = path.read_text(), saved_state(tmp_path / "checkpoint-6")["stateful_callbacks"]["pdyn"]["target"]
    expected = {"step": 6, "of": "update_ratio by p", "wanted": 3.0, "steps": 0, "unlogged": memory["unlogged"]}
    assert memory == expected
    held = {"wanted": "3.0", "steps": "0"}
    if key in held:
        before = text.index('"target": {')
        text = text[:before] + text[before:].replace(f'"{key}": {held[key]}', f'"{key}": {value}', 1)
    else:
        text = text.replace('"unlogged": {}', '"unlogged": []')
    path.write_text(text)
    run = trainer(tmp_path, callbacks=[PTargetCallback("update_ratio=3", WIDE, interval=2)], optim_args="p=0.4")
    with pytest.raises(ValueError, match="damaged"):
        run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))


@pytest.mark.parametrize(
    ("target", "label", "said"), [("lr_factor=hold", None, "lr_factor by p'"), ("update_ratio=3", "norm", "p of norm'")]
)
def test_what_another_target_remembers_is_not_taken_up(
    tmp_path: Path, target: str, label: str | None, said: str
) -> None:
    train(tmp_path, save_strategy="steps", save_steps=6)
    run = trainer(tmp_path, callbacks=[PTargetCallback(target, WIDE, label, interval=2)], optim_args="p=0.4")
    with pytest.warns(UserWarning, match=f"steered 'update_ratio by p', this one .*{said}"):
        run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert run.state.global_step == 12


def test_another_target_than_the_checkpoint_s_holds_and_is_said(tmp_path: Path) -> None:
    train(tmp_path, save_strategy="steps", save_steps=6)
    run = trainer(tmp_path, callbacks=[PTargetCallback("update_ratio=4", WIDE, interval=2)], optim_args="p=0.4")
    with pytest.warns(UserWarning, match=r"wanted update_ratio of 3\.0, this one 4"):
        run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert logged(run, "pdyn/target/wanted")[-1] == 4


@pytest.mark.parametrize(
    ("callbacks", "options", "reason"),
    [
        (lambda: [PTargetCallback("update_ratio=3")], {"optim": "adamw_torch"}, "exponent p of Padam, got AdamW"),
        (lambda: [PTargetCallback("update_ratio=3")], {"optim_args": "p=0.1"}, r"\[0.25, 0.6\], got p=0.1"),
        (lambda: [PTargetCallback("update_ratio=3", interval=50)], {}, "got 50 steps, training has 12"),
        (lambda: [PTargetCallback("update_ratio=3", label="conv")], {}, "conv"),
        (
            lambda: [
                PTargetCallback("update_ratio=3", interval=2),
                GroupRulesCallback([{"name": "top", "match": r"h\.1", "p": 0.3}]),
            ],
            {},
            "one p for all groups of a label",
        ),
        (
            lambda: [PTargetCallback("update_ratio=3", interval=2), PControlCallback(interval=2)],
            {},
            "would both write p",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_step(
    tmp_path: Path, callbacks: Any, options: dict[str, Any], reason: str
) -> None:
    run = trainer(tmp_path, callbacks=callbacks(), **options)
    with pytest.raises(ValueError, match=reason):
        run.train()
    assert run.state.global_step == 0


def test_what_is_no_target_or_no_config_is_refused() -> None:
    with pytest.raises(ValueError, match="such as .*got 6"):
        PTargetCallback(6)  # type: ignore[arg-type]
    for kind in (PControlCallback, functools.partial(PTargetCallback, "update_ratio=3")):
        with pytest.raises(ValueError, match="config must be a ControlConfig.*got 0.3"):
            kind(0.3)  # type: ignore[arg-type]


def test_a_failure_leaves_p_and_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any) -> None:
        raise MemoryError("none left")

    monkeypatch.setattr(PowerMomentsReader, "read", fail)
    with pytest.warns(UserWarning, match="MemoryError: none left"):
        run = train(tmp_path)
    assert run.state.global_step == 12
    assert set(logged(run, "pdyn/p")) == {0.4}


def test_beside_the_allocation_curve(tmp_path: Path) -> None:
    callbacks = [PTargetCallback("lr_factor=hold", WIDE, interval=3), AllocationCallback("log")]
    run = trainer(tmp_path, callbacks=callbacks, optim_args="p=0.4", logging_steps=1)
    run.train()
    factor = logged(run, "pdyn/allocation/lr_factor")
    # The record of step 3 has the factor before the decision of that step; later ones are drawn back to it.
    assert factor[3::3] == pytest.approx([factor[2]] * 3, rel=0.15)
