"""The script as its user runs it: a process of its own, offline, at the smallest useful size."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

RECIPES = Path(__file__).resolve().parents[2] / "recipes"

TINY = {
    "output_dir": "out",
    "pretrain_steps": 8,
    "block_size": 32,
    "max_train_blocks": 96,
    "max_validation_blocks": 16,
    "max_steps": 12,
    "logging_steps": 3,
    "p_interval": 3,
    "learning_rate": 0.01,
    "sample_tokens": 8,
}


def run(directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(RECIPES / "gpt2_lora.py"), *options],
        cwd=directory,
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(RECIPES.parent),
            "XDG_CACHE_HOME": str(directory / "cache"),
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output directory of a run of the demo's configuration, cut short."""
    directory = tmp_path_factory.mktemp("gpt2_lora")
    options = [f"--{name}={value}" for name, value in TINY.items()]
    result = run(directory, "--config", str(RECIPES / "configs" / "gpt2_lora.yaml"), *options)
    assert result.returncode == 0, result.stderr
    assert "Summary" in result.stdout
    return directory / "out"


@pytest.fixture(scope="module")
def summary(finished: Path) -> dict[str, object]:
    return json.loads((finished / "summary.json").read_text())


def test_perplexity_falls(summary: dict[str, float]) -> None:
    assert 1 < summary["perplexity_after"] < summary["perplexity_before"]


def test_summary_holds_the_numbers_and_existing_outputs(summary: dict[str, object]) -> None:
    for name in ("final_p", "final_D_w", "final_D_b", "final_G_w_over_G_b", "trainable_parameters"):
        assert isinstance(summary[name], int | float), name
    assert summary["optimizer_steps"] == 12
    assert summary["sample"]
    assert {"adapter", "trainer_state", "tensorboard", "summary", "checkpoint-12"} <= summary["outputs"].keys()
    for path in summary["outputs"].values():
        assert Path(path).exists(), path


def test_adapter_reloads_on_the_cached_checkpoint(finished: Path) -> None:
    base = json.loads((finished / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    tokens = torch.tensor([AutoTokenizer.from_pretrained(finished / "adapter")("to be")["input_ids"]])
    with torch.no_grad():
        before = plain(input_ids=tokens).logits
        adapted = PeftModel.from_pretrained(plain, finished / "adapter").eval()
        assert not torch.equal(adapted(input_ids=tokens).logits, before)


def test_trainer_state_records_the_dynamics(finished: Path) -> None:
    history = json.loads((finished / "trainer_state.json").read_text())["log_history"]
    logged = {key for entry in history for key in entry}
    assert {"pdyn/p", "pdyn/D_w", "pdyn/D_b", "pdyn/G_w_over_G_b", "pdyn/weight_decay"} <= logged


def test_tensorboard_has_every_record_and_nothing_lies_elsewhere(finished: Path, summary: dict[str, Any]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(summary["outputs"]["tensorboard"])
    accumulator.Reload()
    assert [event.step for event in accumulator.Scalars("train/pdyn/p")] == [3, 6, 9, 12]
    assert sorted(path.name for path in finished.parent.iterdir()) == ["cache", "out"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--optim_args", "q=1"], "Unknown key 'q' in optim_args"),
        (["--p_control", "gradient", "--optim", "adamw_torch"], "got optim='adamw_torch'. Set --optim padam"),
        (["--p_control", "gradient", "--optim_args", "p=0.9"], "got p=0.9"),
        (["--wd_off", "0.5"], "wd_off has nothing to switch off"),
        (["--resume_from_checkpoint", "nope"], "for the newest, got 'nope'"),
        (["--validation_fraction", "0"], "--validation_fraction must lie between 0 and 1, got 0.0"),
    ],
)
def test_bad_values_are_found_before_any_work(tmp_path: Path, options: list[str], message: str) -> None:
    result = run(tmp_path, *options)
    assert result.returncode == 2
    assert message in result.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())  # no cache, no output


def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("learning_rat: 1\n")
    result = run(tmp_path, "--config", "bad.yaml")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("gpt2_lora.py: error: unknown key 'learning_rat' in bad.yaml; did you mean 'learning_rate'")
