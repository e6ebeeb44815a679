"""Scripts that never heard of the plugin, run in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_pdyn import PControlCallback, TelemetryCallback
from hf_pdyn.frontend import launcher
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
        result = run("-m", "hf_pdyn", *options, str(tmp_path / "script.py"), "--", "-x", check=False)
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
    result = run("-m", "hf_pdyn", str(tmp_path / "script.py"), "--p_min", "x", cwd=Path("/"), check=False)
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
        (["--wd_off", "soon", str(SCRIPT)], "'soon' is neither a moment of training nor a target"),
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
    from hf_pdyn.integrations.transformers import set_default_callbacks
    from tests.training import trainer

    monkeypatch.setattr(transformers.trainer, "DEFAULT_CALLBACKS", list(transformers.trainer.DEFAULT_CALLBACKS))
    set_default_callbacks(lambda: [TelemetryCallback()])  # an outer launch, which the inner one replaces
    set_default_callbacks(PdynArguments(p_control="gradient").callbacks)
    found = [{type(callback): callback for callback in trainer(tmp_path).callback_handler.callbacks} for _ in range(2)]
    assert len(found[0]) == len(set(found[0]))
    for kind in (TelemetryCallback, PControlCallback):
        assert found[0][kind] is not found[1][kind]


def test_options_that_reach_no_trainer_are_one_line_and_status_1(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("print('done')")
    result = run("-m", "hf_pdyn", "--wd_off", "0.5", str(tmp_path / "script.py"), check=False)
    assert (result.returncode, result.stdout) == (1, "done\n")
    assert f"python -m hf_pdyn: {tmp_path / 'script.py'} built no Trainer" in result.stderr.splitlines()[-1]
    (tmp_path / "script.py").write_text("import sys; sys.exit(0)")
    assert run("-m", "hf_pdyn", str(tmp_path / "script.py"), check=False).returncode == 1
    assert run("-m", "hf_pdyn", str(tmp_path / "script.py"), "--help").stderr == ""


STARTS_ANOTHER = """
import subprocess, sys
print(subprocess.run([sys.executable, *sys.argv[1:]], check=True))
"""


STARTS_BY_ACCELERATE = """
import sys
from accelerate.commands.launch import launch_command, launch_command_parser
launch_command(launch_command_parser().parse_args(["--cpu", "--num_processes", "1", *sys.argv[1:]]))
"""


STARTS_ELSEWHERE = """
import subprocess, sys
subprocess.run([sys.executable, *sys.argv[2:]], cwd=sys.argv[1], check=True)
"""


def test_a_relative_file_of_groups_is_found_by_processes_in_another_directory(tmp_path: Path) -> None:
    (tmp_path / "starts.py").write_text(STARTS_ELSEWHERE)
    (tmp_path / "groups.yaml").write_text('[{"name": "block", "match": "transformer.h", "lr_mult": 0.5}]')
    (tmp_path / "elsewhere").mkdir()
    child = [str(SCRIPT), *script_arguments(tmp_path / "out")]
    run("-m", "hf_pdyn", "--groups", "groups.yaml", "starts.py", str(tmp_path / "elsewhere"), *child, cwd=tmp_path)
    recorded = json.loads((tmp_path / "out" / "pdyn" / "run.json").read_text())
    assert "block" in str(recorded["starts"][0]["callbacks"])


def test_options_reach_the_processes_that_a_script_starts(tmp_path: Path) -> None:
    """As `trl sft` starts its script; no process below the launcher imports hf_pdyn."""
    (tmp_path / "starts.py").write_text(STARTS_BY_ACCELERATE)
    child = [str(SCRIPT), *script_arguments(tmp_path / "out")]
    options = ["--p_control", "gradient", "--p_interval", "2"]
    run("-m", "hf_pdyn", *options, str(tmp_path / "starts.py"), *child)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["optimizer"] == "TrainerPadam"
    state = json.loads((tmp_path / "out" / "checkpoint-6" / "trainer_state.json").read_text())
    assert "pdyn/control/branch" in training_logs(state["log_history"])[-1]


def test_a_child_process_runs_the_sitecustomize_that_ours_hides(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.hidden_one_ran = True")
    (tmp_path / "starts.py").write_text(STARTS_ANOTHER)
    code = "import sys; print(sys.hidden_one_ran, 'hf_pdyn' in sys.modules, 'torch' in sys.modules)"
    environment = ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-m", "hf_pdyn", str(tmp_path / "starts.py"), "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert result.stdout.startswith("True True False\n"), result.stderr
    assert result.returncode == 1


def test_a_file_named_like_a_value_is_not_the_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("10", "gradient", "0.5", "mlp", "norm"):
        Path(name).touch()
    parser = launcher.build_parser("prog")
    control = ["--p_control", "gradient", "--p_interval", "10", "--wd_off=0.5"]
    for words in (["script.py", "a", "--b"], ["--", "script.py", "a", "--b"]):
        assert launcher._split([*control, *words], parser) == (control, "script.py", False, ["a", "--b"])
    labels = ["--wd_off", "0.5", "--wd_off_labels", "mlp"]
    assert launcher._split([*labels, "--", "script.py"], parser) == (labels, "script.py", False, [])
    assert launcher._split([*labels, "-m", "module", "--"], parser) == (labels, "module", True, ["--"])
    with pytest.raises(SystemExit, match="2"):
        launch(["--p_control", "gradient", "--"])
    assert "a script is required" in capsys.readouterr().err


def test_a_launched_script_resumes_from_the_newest_complete_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("-m", "hf_pdyn", str(SCRIPT), *script_arguments(out), "--save_steps", "2")
    (out / "checkpoint-6" / "trainer_state.json").unlink()
    result = run("-m", "hf_pdyn", str(SCRIPT), *script_arguments(out), "--resume_from_checkpoint", "True")
    assert "checkpoint-6 (no trainer_state.json); checkpoint-4 is used" in result.stderr
