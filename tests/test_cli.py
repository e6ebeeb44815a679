import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from hf_pdyn import cli
from tests.report.runs import make_run
from tests.training import gpt2


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "200")
    gpt2().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    cli.main(["groups", *arguments])
    return capsys.readouterr().out


def rows(output: str) -> dict[tuple[str, str], list[str]]:
    found = {}
    for line in output.splitlines():
        cells = [cell.strip() for cell in re.split("[│┃]", line)[1:-1]]
        if len(cells) == 7 and cells[0] in ("weight", "bias_like"):
            found[cells[0], cells[1]] = cells[2:]
    return found


def test_the_groups_of_a_checkpoint(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    output = shown(
        capsys,
        "--model",
        checkpoint,
        "--weight_decay",
        "0.1",
        "--optim_args",
        "p=0.3,p.norm=0,fused=true,capturable=true",
    )
    assert rows(output) == {
        ("weight", "attention"): ["4", "2,048", "0.1", "0.3", "5e-05"],
        ("weight", "embedding"): ["2", "1,280", "0.1", "0.3", "5e-05"],
        ("weight", "mlp"): ["4", "4,096", "0.1", "0.3", "5e-05"],
        ("bias_like", "attention"): ["4", "128", "0", "0.3", "5e-05"],
        ("bias_like", "mlp"): ["4", "160", "0", "0.3", "5e-05"],
        ("bias_like", "norm"): ["10", "160", "0", "0 (set)", "5e-05"],
    }
    total = sum(param.numel() for param in gpt2().parameters())
    assert f"{total:,} of {total:,} parameters are trained" in output


def test_plain_lora_is_warned_about(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    output = shown(capsys, "--model", checkpoint, "--lora", "c_attn", "--lora_r", "4")
    assert set(rows(output)) == {("weight", "lora_A"), ("weight", "lora_B")}
    assert rows(output)["weight", "lora_A"][:2] == ["2", "128"]
    assert "No bias-like parameter is trained" in output
    assert 'norms (modules_to_save=["ln_1", "ln_2", "ln_f"])' in output.replace("\n", " ")


def test_a_directory_named_like_markup(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = tmp_path / "[" / "x]"
    named.parent.mkdir()
    Path(checkpoint).rename(named)
    assert rows(shown(capsys, "--model", str(named)))


def test_lora_with_biases_and_norms(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    lora = ["--lora", "c_attn", "--lora_bias", "all", "--lora_modules_to_save", "ln_1,ln_f"]
    output = shown(capsys, "--model", checkpoint, *lora, "--names", "--optim_args", "lr_mult.lora_B=16")
    assert rows(output)["weight", "lora_B"][-1] == "0.0008"
    assert ("bias_like", "norm") in rows(output)
    assert "No bias-like" not in output
    assert "lora_A.default.weight" in output.replace("\n", "")


def test_an_adapter_directory(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from peft import LoraConfig, get_peft_model

    model = GPT2LMHeadModel.from_pretrained(checkpoint)
    get_peft_model(model, LoraConfig(target_modules=["c_attn"], r=2, fan_in_fan_out=True)).save_pretrained(
        tmp_path / "adapter"
    )
    output = shown(capsys, "--model", str(tmp_path / "adapter"))
    assert set(rows(output)) == {("weight", "lora_A"), ("weight", "lora_B")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "/no/such/model"], "/no/such/model"),
        (["--model", "CHECKPOINT", "--optim_args", "pp=1"], "Unknown key 'pp' in optim_args"),
        (["--model", "CHECKPOINT", "--optim_args", "p.lora_A=1"], "No parameter group has the label 'lora_A'"),
        (["--model", "CHECKPOINT", "--lora", "no_such_module"], "no_such_module"),
        (["--model", "CHECKPOINT", "--lora", "("], "--lora must be names or a regular expression, got '('"),
        (["--model", "CHECKPOINT", "--dora"], "name its modules by --lora"),
        (["--model", "CHECKPOINT", "--lora_r", "4"], "name its modules by --lora"),
    ],
)
def test_bad_input_is_one_message_and_status_2(
    arguments: list[str], message: str, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        shown(capsys, *(checkpoint if argument == "CHECKPOINT" else argument for argument in arguments))
    error = capsys.readouterr().err
    assert error.startswith("hf-pdyn: ")
    assert message in error


def test_a_config_alone_is_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is loaded but the configuration: sizes of any model are shown at once."""
    GPT2Config(architectures=["GPT2LMHeadModel"]).save_pretrained(tmp_path)
    assert "124,439,808 of 124,439,808 parameters" in shown(capsys, "--model", str(tmp_path))


@pytest.mark.parametrize("command", ["--version", "compare", "report"])
def test_what_needs_no_model_imports_neither_torch_nor_transformers(tmp_path: Path, command: str) -> None:
    run = str(make_run(tmp_path / "run"))
    arguments = {"--version": [], "compare": [run, run], "report": [run, "-o", str(tmp_path / "report.html")]}[command]
    code = (
        "import sys; from hf_pdyn import cli\n"
        "try:\n    cli.main(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code, command, *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("[]\n")


def test_the_groups_of_rules(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "groups.yaml").write_text("- {name: top, match: 'h.1', lr: 2e-6, p: 0.25}\n")
    output = shown(capsys, "--model", checkpoint, "--groups", str(tmp_path / "groups.yaml"), "--names")
    lines = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in output.splitlines()]
    assert ["top", "weight", "mlp", "2", "2,048", "0", "0.25 (set)", "2e-06"] in lines
    assert ["", "weight", "mlp", "2", "2,048", "0", "0.5", "5e-05"] in lines
    assert ["transformer.h.1.mlp.c_fc.weight", "top", "weight", "mlp", "16 x 64"] in lines


def test_rules_that_match_nothing_are_one_line(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "groups.yaml").write_text("- {name: top, match: 'h.7', lr: 2e-6}\n")
    with pytest.raises(SystemExit) as raised:
        cli.main(["groups", "--model", checkpoint, "--groups", str(tmp_path / "groups.yaml")])
    assert raised.value.code == 2
    assert "Group rule 'top' matches no trainable parameter" in capsys.readouterr().err
