"""`hf-pdyn sweep` on a tiny script: it runs, resumes, judges and reports."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from transformers import HfArgumentParser, Trainer, TrainingArguments
from tests.training import gpt2, token_blocks

(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
Path(args.output_dir, "runs.txt").open("a").write("x")
trainer = Trainer(gpt2(), args, train_dataset=token_blocks(), eval_dataset=token_blocks(16, seed=9))
trainer.train()
trainer.save_state()
trainer.evaluate()
"""
ARGUMENTS = ["--max_steps", "4", "--logging_steps", "2", "--save_strategy", "no", "--use_cpu", "--report_to", "none"]


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text(SCRIPT.format(root=str(Path(__file__).parents[2])))
    return path


def sweep(out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hf_pdyn.cli", "sweep", "--output_dir", str(out), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_sweep_judges_and_is_not_done_twice(tmp_path: Path, script: Path) -> None:
    out = tmp_path / "sweep"
    words = ["--p", "0.4", "0.5", "--seeds", "2", "--jobs", "2", str(script), *ARGUMENTS, "--learning_rate", "1e-3"]
    first = sweep(out, *words)
    assert first.returncode == 0, first.stderr
    assert "p = 0.4 against 0.5, eval_loss:" in first.stdout
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    assert sorted((row["configuration"]["p"], row["configuration"]["seed"]) for row in rows) == [
        (0.4, 1), (0.4, 2), (0.5, 1), (0.5, 2),
    ]  # fmt: skip
    assert {row["configuration"]["learning_rate"] for row in rows} == {1e-3}
    assert len({row["result"]["eval_loss"] for row in rows}) == 4
    assert (out / "report.html").exists()
    (again, *_) = (out / row["result"]["directory"] for row in rows)
    second = sweep(out, *words)
    assert second.returncode == 0 and (again / "runs.txt").read_text() == "x"
    other = sweep(out, "--metric", "train_loss", *words)
    assert "p = 0.4 against 0.5, train_loss:" in other.stdout and (again / "runs.txt").read_text() == "x"
    missing = sweep(out, "--metric", "eval_accuracy", *words)
    assert missing.returncode == 1 and "logged no 'eval_accuracy'" in missing.stderr
    assert sweep(out, *words).returncode == 0
    written: dict[str, Any] = json.loads((out / "sweep.json").read_text())
    assert [arm["p"] for arm in written["arms"]] == [0.4, 0.5]


def test_learning_rates_are_tuned(tmp_path: Path, script: Path) -> None:
    out = tmp_path / "sweep"
    done = sweep(
        out, "--p", "0.4", "0.5", "--seeds", "2", "--match", "learning_rate", "--jobs", "2", str(script), *ARGUMENTS
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line)["configuration"] for line in (out / "rows.jsonl").read_text().splitlines()]
    tuned = {
        p: sorted({row["learning_rate"] for row in rows if row["p"] == p and row["seed"] == 0}) for p in (0.4, 0.5)
    }
    assert [len(rates) for rates in tuned.values()] == [3, 3]
    assert tuned[0.5][1] == 5e-5 and tuned[0.4][1] > 5e-5  # raw updates of 0.4 are smaller than Adam's


def test_a_run_that_fails_is_told_with_its_output(tmp_path: Path, script: Path) -> None:
    script.write_text(f"raise SystemExit('the data is gone')\n{script.read_text()}")
    done = sweep(tmp_path / "sweep", "--seeds", "2", str(script), *ARGUMENTS)
    assert done.returncode == 1
    assert "the data is gone" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--seeds", "1", "SCRIPT"], "--seeds must be 2"),
        (["nothing.py"], "'nothing.py'"),
        ([], "a script is required"),
        (["--match", "lr", "SCRIPT"], "--match must be one of"),
        (["--jobs", "0", "SCRIPT"], "--jobs must be 1"),
        (["--learning_rate", "0", "SCRIPT"], "--learning_rate must be"),
        (["--p", "0.5", "SCRIPT"], "two exponents"),
        (["SCRIPT", "--learning_rate", "high"], "high"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, script: Path, words: list[str], reason: str) -> None:
    done = sweep(tmp_path / "sweep", *(str(script) if word == "SCRIPT" else word for word in words))
    assert done.returncode == 2
    assert reason in done.stderr.splitlines()[-1]


def test_a_metric_that_is_not_there(tmp_path: Path, script: Path) -> None:
    done = sweep(
        tmp_path / "sweep", "--p", "0.4", "0.5", "--seeds", "2", "--metric", "accuracy", str(script), *ARGUMENTS
    )
    assert done.returncode == 1
    assert "eval_loss" in done.stderr and "'accuracy'" in done.stderr
