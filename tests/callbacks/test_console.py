"""One line a record on the console; everything in the state."""

import ast
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import PrinterCallback

from hf_pdyn import PControlCallback, TelemetryCallback
from hf_pdyn.callbacks.console import short_record
from tests.training import trainer, training_logs


def test_a_short_record() -> None:
    record = {
        "loss": 1.0,
        "step": 3,
        "pdyn/p": 0.4,
        "pdyn/D_w": 2.0,
        "pdyn/G_w_over_G_b": 3.0,
        "pdyn/control/branch": 2.0,
    }
    assert short_record(record) == {"loss": 1.0, "step": 3, "p": 0.4, "D_w/D_b": 3.0, "decision": "rebound"}
    assert short_record({"eval_loss": 2.0}) == {"eval_loss": 2.0}


@pytest.mark.parametrize("quiet", [True, False])
def test_the_console_has_a_line_and_the_state_has_everything(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], quiet: bool
) -> None:
    callbacks = [TelemetryCallback(), PControlCallback(interval=2)]
    run = trainer(tmp_path, callbacks=callbacks, disable_tqdm=quiet)
    run.train()
    output = capfd.readouterr().out
    lines = [ast.literal_eval(line[line.index("{") :]) for line in output.splitlines() if "'loss'" in line]
    expected = {"loss", "grad_norm", "learning_rate", "epoch", "p", "D_w/D_b", "decision"}
    assert [line.keys() for line in lines] == [expected] * 6
    assert all("pdyn/D_w" in record for record in training_logs(run.state.log_history))


def test_a_second_training_is_shortened_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = trainer(tmp_path, callbacks=[TelemetryCallback()])
    run.train()
    run.train()
    assert "pdyn/" not in capfd.readouterr().out


def test_a_printer_of_the_user_s_own_prints_what_it_wants(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Everything(PrinterCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            sys.stdout.write(f"{sorted(logs)}\n")

    run = trainer(tmp_path, callbacks=[Everything(), TelemetryCallback()])
    run.train()
    assert "pdyn/D_w" in capfd.readouterr().out


def test_without_our_callbacks_nothing_changes(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.train()
    assert not any("on_log" in vars(callback) for callback in run.callback_handler.callbacks)
