"""Every training with one of our callbacks leaves a `pdyn/run.json`."""

import copy
import inspect
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback

import hf_pdyn
from hf_pdyn import callbacks
from hf_pdyn.callbacks.base import PdynCallback
from hf_pdyn.callbacks.run_json_writer import constructor_arguments, describe_model
from hf_pdyn.policy.algorithm1 import ControlConfig
from hf_pdyn.run_dir import run_json, tables
from tests.training import gpt2, saved_state, trainer


def noted(run_dir: Path) -> dict[str, Any]:
    found = run_json.read(run_dir)
    assert found is not None
    return found


def both() -> list[PdynCallback]:
    return [hf_pdyn.TelemetryCallback(per_layer=True), hf_pdyn.PControlCallback(interval=3)]


def test_a_training_leaves_its_configuration_and_its_end(tmp_path: Path) -> None:
    trainer(tmp_path, callbacks=both(), hub_token="hf_very_secret", optim_args="p=0.4").train()
    found = noted(tmp_path)
    (start,) = found["starts"]
    assert found["finished"]["step"] == 12 and start["step"] == 0 and start["max_steps"] == 12
    assert "hf_very_secret" not in run_json.path_of(tmp_path).read_text()
    assert start["training_arguments"]["optim_args"] == "p=0.4" and start["training_arguments"]["optim"] == "padam"
    assert start["callbacks"] == [
        {"name": "TelemetryCallback", "every": None, "per_layer": True},
        {
            "name": "PControlCallback",
            "config": {"p_min": 0.25, "p_max": 0.6, "p_step": 0.02, "threshold": 1.2},
            "interval": 3,
            "interval_steps": 3,
        },
    ]
    total = sum(param.numel() for param in gpt2().parameters())
    assert start["model"]["class"] == "GPT2LMHeadModel"
    assert start["model"]["parameters"] == start["model"]["trainable_parameters"] == total
    assert sum(start["model"]["trainable_parameters_by_label"].values()) == total
    assert start["processes"] == 1 and start["device"] == "cpu"


def everything(run_dir: Path) -> dict[str, bytes]:
    folder = run_dir / tables.FOLDER
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_start_that_is_refused_leaves_the_earlier_run_as_it_is(tmp_path: Path) -> None:
    trainer(tmp_path, callbacks=[*both(), hf_pdyn.SampleLossCallback(4)]).train()
    before = everything(tmp_path)
    assert {name.split("/")[0] for name in before} == {"run.json", "layers", "decisions", "sample_losses"}
    with pytest.raises(ValueError, match="interval must end within training"):
        trainer(tmp_path, callbacks=[hf_pdyn.TelemetryCallback(), hf_pdyn.PControlCallback(interval=100)]).train()
    assert everything(tmp_path) == before


def test_a_resume_that_a_checkpoint_s_state_refuses_leaves_the_run_as_it_is(tmp_path: Path) -> None:
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 6, "optim_args": "p=0.4"}
    trainer(tmp_path, callbacks=both(), **options).train()
    before = everything(tmp_path)
    narrow = hf_pdyn.PControlCallback(ControlConfig(p_min=0.45, p_max=0.6), interval=3)
    # The p of the checkpoint's optimizer is within the range, the p that control remembers is not.
    state = saved_state(tmp_path / "checkpoint-6")
    assert state["stateful_callbacks"]["pdyn"]["control"]["state"]["p"] < 0.45
    run = trainer(tmp_path, callbacks=[hf_pdyn.TelemetryCallback(), Sets(0.5), narrow], **options)
    with pytest.raises(ValueError, match="p_min"):
        run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert everything(tmp_path) == before


class Sets(TrainerCallback):
    """Gives every group that p when training begins."""

    def __init__(self, p: float) -> None:
        self.p = p

    def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        for group in optimizer.param_groups:
            group["p"] = self.p


def test_a_new_run_replaces_all_that_an_earlier_one_left(tmp_path: Path) -> None:
    """Also the records of callbacks that it does not have."""
    trainer(tmp_path, callbacks=[*both(), hf_pdyn.SampleLossCallback(4)]).train()
    trainer(tmp_path, callbacks=[hf_pdyn.TelemetryCallback()]).train()
    assert set(everything(tmp_path)) == {"run.json"}


def test_a_run_that_dies_is_unfinished_and_a_resume_keeps_its_start(tmp_path: Path) -> None:
    class Dies(hf_pdyn.TelemetryCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 7:
                raise RuntimeError("killed")

    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 6}
    with pytest.raises(RuntimeError, match="killed"):
        trainer(tmp_path, callbacks=[Dies()], **options).train()
    assert noted(tmp_path)["finished"] is None
    trainer(tmp_path, callbacks=both()[:1], **options).train(resume_from_checkpoint=True)
    found = noted(tmp_path)
    assert [(start["step"], start["callbacks"][0]["name"]) for start in found["starts"]] == [
        (0, "Dies"),
        (6, "TelemetryCallback"),
    ]
    assert found["finished"]["step"] == 12


def test_a_state_keeps_nothing_alive(tmp_path: Path) -> None:
    run = trainer(tmp_path, callbacks=both())
    run.train()
    weights = len(pickle.dumps(run.model))
    assert len(pickle.dumps(run.state)) < weights / 2
    assert len(pickle.dumps(copy.deepcopy(run.state))) < weights / 2


def test_the_order_of_callbacks_stays(tmp_path: Path) -> None:
    """Over several trainings, also in the log of a resumed one."""
    schedules = [hf_pdyn.ScheduleCallback("weight_decay", 0.1), hf_pdyn.ScheduleCallback("eps", 1e-8)]
    run = trainer(tmp_path, callbacks=[*schedules, *both()], save_strategy="steps", save_steps=6, weight_decay=0.1)
    run.train()
    for checkpoint in (6, None):
        run.train(resume_from_checkpoint=checkpoint and str(tmp_path / f"checkpoint-{checkpoint}"))
        handled = [one for one in run.callback_handler.callbacks if isinstance(one, PdynCallback)]
        assert handled[:2] == schedules and len(handled) == 4
        starts = noted(tmp_path)["starts"]
        assert all(start["callbacks"] == starts[0]["callbacks"] for start in starts)
        assert [entry.get("field") for entry in starts[0]["callbacks"][:2]] == ["weight_decay", "eps"]


@pytest.mark.parametrize("others", [[], [hf_pdyn.NonfiniteCallback()]], ids=["alone", "around another"])
def test_a_callback_that_is_added_twice_is_one(tmp_path: Path, others: list[PdynCallback]) -> None:
    control = hf_pdyn.PControlCallback(interval=3)
    run = trainer(tmp_path, callbacks=[control, *others, control])
    for _ in range(2):
        run.train()
        found = noted(tmp_path)
        assert found["finished"]["step"] == 12
        names = [entry["name"] for entry in found["starts"][0]["callbacks"]]
        assert names == ["PControlCallback", *(type(other).__name__ for other in others)]


def test_a_run_and_its_checkpoints_have_one_id_and_a_new_run_another(tmp_path: Path) -> None:
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 6}
    trainer(tmp_path, callbacks=both(), **options).train()
    first = noted(tmp_path)["run"]
    trainer(tmp_path, callbacks=both(), **options).train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert noted(tmp_path)["run"] == first and len(noted(tmp_path)["starts"]) == 2
    assert {run_json.id_in(saved_state(tmp_path / f"checkpoint-{step}")) for step in (6, 12)} == {first}
    shutil.copytree(tmp_path / "checkpoint-12", tmp_path / "kept")

    trainer(tmp_path, callbacks=[hf_pdyn.NonfiniteCallback()], **options).train()
    second = noted(tmp_path)["run"]
    assert second != first and run_json.id_in(saved_state(tmp_path / "checkpoint-12")) == second

    # Going on from a checkpoint of the first, it is the first again; what began the second is not its start.
    longer = {**options, "max_steps": 18, "save_strategy": "no"}
    trainer(tmp_path, callbacks=both(), **longer).train(resume_from_checkpoint=str(tmp_path / "kept"))
    assert noted(tmp_path)["run"] == first
    assert [start["step"] for start in noted(tmp_path)["starts"]] == [12]


def test_a_checkpoint_of_an_earlier_version_has_no_id_and_goes_on(tmp_path: Path) -> None:
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 6}
    trainer(tmp_path, callbacks=both(), **options).train()
    path = tmp_path / "checkpoint-6" / "trainer_state.json"
    state = saved_state(path.parent)
    del state["stateful_callbacks"]["pdyn"]["run"]
    path.write_text(json.dumps(state))
    before = noted(tmp_path)["run"]
    trainer(tmp_path, callbacks=both(), **options).train(resume_from_checkpoint=str(path.parent))
    assert noted(tmp_path)["run"] == before and noted(tmp_path)["finished"]["step"] == 12


def test_a_foreign_file_blocks_nothing_else(tmp_path: Path) -> None:
    trainer(tmp_path, callbacks=both()).train()
    foreign = tables.LAYERS.folder(tmp_path) / "a-foreign.parquet"
    pq.write_table(pa.table({"x": [1]}), foreign)
    with pytest.warns(UserWarning, match=r"could not drop the rows.* 1 of its files, the first is .*a-foreign"):
        trainer(tmp_path, callbacks=[hf_pdyn.TelemetryCallback()], max_steps=2).train()
    assert set(everything(tmp_path)) == {"run.json", "layers/a-foreign.parquet"}
    assert noted(tmp_path)["finished"]["step"] == 2


def test_what_cannot_be_written_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("hf_pdyn.run_dir.run_json._write", fail)
    with pytest.warns(UserWarning, match="could not write the run's pdyn/run.json: disk full"):
        trainer(tmp_path, callbacks=[hf_pdyn.TelemetryCallback()], max_steps=2).train()


def test_a_model_that_cannot_be_described_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no labels")

    monkeypatch.setattr("hf_pdyn.callbacks.run_json_writer.label_parameters", fail)
    with pytest.warns(UserWarning, match="no labels"):
        trainer(tmp_path, callbacks=[hf_pdyn.TelemetryCallback()], max_steps=2, optim="adamw_torch").train()


@pytest.mark.parametrize("optim", ["padam", "adamw_torch"])
def test_labels_are_those_of_the_parameter_groups(tmp_path: Path, optim: str) -> None:
    optim_args = "p=0.4,label.wte=bias_like/other" if optim == "padam" else None
    run = trainer(tmp_path, callbacks=[hf_pdyn.TelemetryCallback()], max_steps=2, optim=optim, optim_args=optim_args)
    run.train()
    by_label = noted(tmp_path)["starts"][0]["model"]["trainable_parameters_by_label"]
    ruled = {"bias_like/other": run.model.transformer.wte.weight.numel()} if optim == "padam" else {}
    assert {label: by_label[label] for label in by_label if label == "bias_like/other"} == ruled
    assert sum(by_label.values()) == run.model.num_parameters()


def test_an_adapter_is_described_by_its_model() -> None:
    model = get_peft_model(gpt2(), LoraConfig(target_modules=["c_attn"], r=2, fan_in_fan_out=True))
    described = describe_model(model)
    assert (described["class"], described["adapter"]) == ("GPT2LMHeadModel", "PeftModel")
    assert described["trainable_parameters_by_label"].keys() == {"weight/lora_A", "weight/lora_B"}
    assert described["trainable_parameters"] < described["parameters"]


@pytest.mark.parametrize("name", callbacks.__all__)
def test_a_callback_keeps_each_argument_under_its_name(name: str) -> None:
    """The convention that `constructor_arguments` goes by; `trainer` says who delivers events and is no setting."""
    cls = getattr(callbacks, name)
    required = {
        "GroupRulesCallback": ([{"name": "all", "match": "."}],),
        "LearningRateScheduleCallback": ("lr_mult", 0.5, "norm"),
        "ScheduleCallback": ("p", "linear:0.5..0.4"),
        "WeightDecayShutoffCallback": (0.5,),
        "PTargetCallback": ("update_ratio=6",),
    }
    names = [name for name in inspect.signature(cls.__init__).parameters if name not in ("self", "trainer")]
    assert list(constructor_arguments(cls(*required.get(name, ())))) == names
