"""Scripts that never heard of the plugin, run in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_pdyn import PControlCallback, TelemetryCallback
from hf_pdyn.frontend.launcher import launch
from tests.training import training_logs

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "scripts" / "unmodified_trainer.py"

ENVIRONMENT = os.environ | {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "ACCELERATE_USE_CPU": "true",
}


def run(*command: str, cwd: Path = ROOT, check: bool = True) -> subprocess.CompletedProcess[str]:
    result = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=cwd, env=ENVIRONMENT)
    if check:
        assert result.returncode == 0, result.stderr
    return result


def script_arguments(output_dir: Path) -> list[str]:
    options = "--optim padam --optim_args p=0.4 --max_steps 6 --weight_decay 0.1 --logging_steps 2 --use_cpu"
    return ["--output_dir", str(output_dir), *options.split(), "--report_to", "tensorboard"]


LAUNCHERS = {
    "python -m": ["-m", "hf_pdyn"],
    "accelerate launch -m": ["-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "-m", "hf_pdyn"],
    "hf-pdyn run": ["-m", "hf_pdyn.cli", "run"],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_an_unmodified_script_trains_with_padam_and_reports(tmp_path: Path, launcher: str) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = "--p_control gradient --p_interval 2 --p_min 0.3 --wd_off 0.5 --telemetry layers".split()
    run(*LAUNCHERS[launcher], *options, str(SCRIPT), *script_arguments(tmp_path))
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["optimizer"] == "TrainerPadam"
    assert report["argv"][1:] == script_arguments(tmp_path)  # the script's own arguments, untouched
    assert report["name"] == "__main__"
    logs = training_logs(json.loads((tmp_path / "checkpoint-6" / "trainer_state.json").read_text())["log_history"])
    assert [record["step"] for record in logs] == [2, 4, 6]
    assert logs[0]["pdyn/p"] == 0.4
    assert {"pdyn/D_w", "pdyn/D_b", "pdyn/control/branch", "pdyn/p"} <= set(logs[-1])
    assert [record["pdyn/weight_decay"] for record in logs] == [0.1, 0.0, 0.0]
    (events,) = {path.parent for path in tmp_path.rglob("events.out.tfevents.*")}
    accumulator = EventAccumulator(str(events))
    accumulator.Reload()
    scalars = [event.value for event in accumulator.Scalars("train/pdyn/D_w")]
    assert scalars == pytest.approx([record["pdyn/D_w"] for record in logs], rel=1e-6)


def test_options_of_several_values_may_stand_right_before_the_script(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import sys; print(sys.argv[1:])")
    for options in (["--schedule", "weight_decay=cosine:0.1..0"], ["--wd_off", "0.5", "--wd_off_labels", "mlp"]):
        result = run("-m", "hf_pdyn", *options, str(tmp_path / "script.py"), "--", "-x")
        assert result.stdout == "['--', '-x']\n"


def test_a_module_can_be_run_too(tmp_path: Path) -> None:
    run("-m", "hf_pdyn", "-m", "tests.scripts.unmodified_trainer", *script_arguments(tmp_path))
    assert json.loads((tmp_path / "report.json").read_text())["optimizer"] == "TrainerPadam"


def test_the_script_s_exit_status_and_errors_pass_through(tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text("import sys; sys.exit(7)")
    assert run("-m", "hf_pdyn", str(tmp_path / "fails.py"), check=False).returncode == 7
    (tmp_path / "raises.py").write_text("raise KeyError('from the script')")
    result = run("-m", "hf_pdyn", str(tmp_path / "raises.py"), check=False)
    assert result.returncode == 1
    assert "KeyError: 'from the script'" in result.stderr


def test_the_script_finds_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text("value = 3")
    (tmp_path / "script.py").write_text("import sys, neighbour; print(neighbour.value, sys.argv[1:])")
    result = run("-m", "hf_pdyn", str(tmp_path / "script.py"), "--p_min", "x", cwd=Path("/"))
    assert result.stdout == "3 ['--p_min', 'x']\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["no_such.py"], "script 'no_such.py' is no file. Plugin options come before the script's path."),
        ([], "a script is required: its path, or -m and a module's name, after the plugin options."),
        (["--p_contrl", "gradient", str(SCRIPT)], "unknown plugin option '--p_contrl'. Did you mean '--p_control'?"),
        (["-m", "no_such_module"], "there is no module 'no_such_module' to run."),
        (["--p_min", "0.1", str(SCRIPT)], "p_min would have no effect: set --p_control gradient too"),
        (["--p_control", "gradients", str(SCRIPT)], "Did you mean 'gradient'?"),
        (["--wd_off", "soon", str(SCRIPT)], "'soon' is no moment of training"),
    ],
)
def test_bad_options_are_one_line_and_status_2(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        launch(options)
    assert message in capsys.readouterr().err


def test_control_without_padam_is_an_error_before_the_first_step(tmp_path: Path) -> None:
    command = script_arguments(tmp_path)
    command[command.index("padam")] = "adamw_torch"
    command[command.index("p=0.4")] = ""
    result = run("-m", "hf_pdyn", "--p_control", "gradient", str(SCRIPT), *command, check=False)
    assert result.returncode == 1
    assert "moves the exponent p of Padam, got AdamW" in result.stderr


def test_every_trainer_gets_callbacks_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers.trainer

    from hf_pdyn import PdynArguments
    from hf_pdyn.integrations.transformers import add_default_callbacks
    from tests.training import trainer

    monkeypatch.setattr(transformers.trainer, "DEFAULT_CALLBACKS", list(transformers.trainer.DEFAULT_CALLBACKS))
    add_default_callbacks(PdynArguments(p_control="gradient").callbacks)
    found = [{type(callback): callback for callback in trainer(tmp_path).callback_handler.callbacks} for _ in range(2)]
    for kind in (TelemetryCallback, PControlCallback):
        assert found[0][kind] is not found[1][kind]
