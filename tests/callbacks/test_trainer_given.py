"""Callbacks that are told their Trainer, as TRL's are, and do not look for it."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerCallback

import hf_pdyn
from hf_pdyn.integrations import transformers as our_transformers
from tests.training import trainer


class Reporter(TrainerCallback):
    """Stands before what a user adds, as the Trainer's reporters do."""

    def __init__(self) -> None:
        self.logs: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.logs.append(dict(logs))


def all_of(run: Any) -> list[TrainerCallback]:
    return [
        hf_pdyn.PControlCallback(interval=3, trainer=run),
        hf_pdyn.ScheduleCallback("eps", "linear:1e-16..1e-12", trainer=run),
        hf_pdyn.WeightDecayShutoffCallback("0.5", trainer=run),
        hf_pdyn.NonfiniteCallback("skip", trainer=run),
        hf_pdyn.TelemetryCallback(trainer=run),
        hf_pdyn.SpectralCallback(4, trainer=run),
        hf_pdyn.SampleLossCallback(8, 8, trainer=run),
    ]


def test_a_given_trainer_is_used_and_is_no_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reporter = Reporter()
    run = trainer(tmp_path, callbacks=[reporter], max_steps=6, weight_decay=0.1, logging_steps=2)
    for callback in all_of(run):
        run.add_callback(callback)
    walk = SimpleNamespace(_getframe=lambda *_: pytest.fail("walked the stack"), modules=sys.modules)
    monkeypatch.setattr(our_transformers, "sys", walk)
    run.train()
    logged = {name for record in reporter.logs for name in record}
    assert {"pdyn/D_w", "pdyn/control/branch", "pdyn/spectrum/step", "pdyn/samples/train/p95"} <= logged
    (start,) = json.loads((tmp_path / "pdyn" / "run.json").read_text())["starts"]
    assert len(start["callbacks"]) == 7
    assert not any("trainer" in callback for callback in start["callbacks"])


def test_another_trainer_s_callback_is_refused(tmp_path: Path) -> None:
    callback = hf_pdyn.TelemetryCallback(trainer=trainer(tmp_path / "other"))
    run = trainer(tmp_path, callbacks=[callback])
    with pytest.raises(ValueError, match="TelemetryCallback was built with trainer=Trainer"):
        run.train()
