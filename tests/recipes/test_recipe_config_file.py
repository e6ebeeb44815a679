from dataclasses import dataclass, field
from pathlib import Path

import pytest

from _common.config_file import RecipeParser
from _common.entry_point import RecipeError
from hf_pdyn import PdynArguments


@dataclass
class Options:
    learning_rate: float = 1.0
    strategy: str = field(default="steps", metadata={"choices": ["no", "steps", "epoch"]})
    moment: str | None = None
    steps: int = 1
    verbose: bool = False
    targets: list[str] | None = None
    report_to: None | str | list[str] = None  # noqa: RUF036  TrainingArguments has this order
    schedule_options: dict | str | None = None


def parse(*words: str) -> Options:
    (options,) = RecipeParser([Options], defaults={"steps": 2}).parse(words)
    return options


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "options.yaml"
    path.write_text(text)
    return str(path)


def test_precedence_is_dataclass_then_defaults_then_file_then_command_line(tmp_path: Path) -> None:
    file = write(tmp_path, "learning_rate: 3\nsteps: 3\n")
    assert (parse().learning_rate, parse().steps) == (1.0, 2)
    assert parse("--config", file).steps == 3
    options = parse("--steps", "4", "--config", file)
    assert (options.learning_rate, options.steps) == (3.0, 4)


def test_file_values_are_typed_as_on_the_command_line(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        "learning_rate: 1e-3\nstrategy: no\nmoment: 0.6\nsteps: -5\nverbose: true\n"
        "targets: [q, v]\nreport_to: [a, b]\nschedule_options: {cycles: 2}\n",
    )
    options = parse("--config", file)
    assert options.learning_rate == 1e-3  # YAML 1.1 alone reads it as text
    assert options.strategy == "no"  # and this as False
    assert options.moment == "0.6"
    assert options.steps == -5
    assert options.verbose is True
    assert options.targets == ["q", "v"]
    assert options.report_to == ["a", "b"]
    assert options.schedule_options == '{"cycles": "2"}'  # TrainingArguments reads JSON


def test_null_and_empty_file(tmp_path: Path) -> None:
    assert parse("--config", write(tmp_path, "moment: null\n")).moment is None
    assert parse("--config", write(tmp_path, "# nothing\n")) == parse()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1\n", "unknown key 'learning_rat'.*did you mean 'learning_rate'"),
        ("zzz: 1\n", "unknown key 'zzz'.*--help"),
        ("steps: many\n", "--steps: invalid int value: 'many'"),
        ("strategy: sometimes\n", "invalid choice: 'sometimes'"),
        ("- steps\n", "'option: value' lines, got a list"),
        ("steps: [1\n", "valid YAML"),
        ("steps: ~\n", "steps in .* takes a value, got ~; leave the line out"),
        ("learning_rate:\n", "learning_rate in .* takes a value, got nothing"),
        ("steps: " + "[" * 5000, "nested less deeply|valid YAML"),
    ],
)
def test_bad_file_is_one_error(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse("--config", write(tmp_path, text))


def parse_pdyn(*words: str) -> PdynArguments:
    (options,) = RecipeParser([PdynArguments], defaults={}).parse(words)
    return options


def test_what_the_command_line_switches_off_takes_the_file_s_details_with_it(tmp_path: Path) -> None:
    file = write(tmp_path, "p_control: gradient\np_interval: 25\np_min: 0.3\nsample_losses: 9\nsample_losses_test: 5\n")
    options = parse_pdyn("--config", file, "--p_control", "none", "--sample_losses=0")
    assert options == PdynArguments()
    options = parse_pdyn("--config", file, "--p_control", "gradient")
    assert (options.p_interval, options.p_min, options.sample_losses_test) == ("25", 0.3, 5)
    with pytest.raises(RecipeError, match="p_interval.*--p_control gradient"):
        parse_pdyn("--p_control", "none", "--p_interval", "25")
    with pytest.raises(RecipeError, match="p_interval would have no effect"):
        parse_pdyn("--config", write(tmp_path, "p_interval: 25\n"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--step", "3"], "unknown option '--step'.*did you mean 'steps'"),
        (["--steps", "x"], "invalid int value: 'x'"),
        (["--config"], "expected one argument"),
        (["--config", "absent.yaml"], "'absent.yaml'.*No such file"),
    ],
)
def test_bad_command_line_is_one_error(words: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse(*words)
