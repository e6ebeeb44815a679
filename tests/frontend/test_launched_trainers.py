"""What the launcher's Trainers write beside their own output."""

import json
import math
from pathlib import Path

from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_pdyn.frontend.launched_trainers import _KeepsMetrics


def test_a_metric_that_became_nan_is_null_and_not_the_value_before(tmp_path: Path) -> None:
    keeps = _KeepsMetrics(tmp_path / "metrics.json")
    args, state, control = TrainingArguments(str(tmp_path), report_to="none"), TrainerState(), TrainerControl()
    for logs in ({"eval_loss": 2.5, "eval_name": "a"}, {"loss": 1.0, "learning_rate": 0.1}, {"eval_loss": math.nan}):
        keeps.on_log(args, state, control, logs=logs)
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"eval_loss": None, "loss": 1.0, "learning_rate": 0.1}
