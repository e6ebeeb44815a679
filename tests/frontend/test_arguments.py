from pathlib import Path
from typing import Any

import pytest
from transformers import HfArgumentParser, TrainingArguments

from hf_pdyn import (
    AllocationCallback,
    FindingsCallback,
    PControlCallback,
    PdynArguments,
    PTargetCallback,
    SampleLossCallback,
    ScheduleCallback,
    SpectralCallback,
    TelemetryCallback,
    WeightDecayShutoffCallback,
)
from hf_pdyn.policy.decay_targets import DecayTarget
from tests.training import arguments, trainer


def test_the_default_watches_and_steers_nothing() -> None:
    telemetry, allocation, findings = PdynArguments().callbacks()
    assert isinstance(findings, FindingsCallback)
    assert isinstance(telemetry, TelemetryCallback)
    assert isinstance(allocation, AllocationCallback) and allocation.every == "auto"
    assert PdynArguments(telemetry="none").callbacks() == []
    assert PdynArguments(telemetry="none", nonfinite="apply").callbacks() == []


@pytest.mark.parametrize(
    ("given", "every"), [("log", "log"), ("20", 20), ("auto", "auto"), (None, None), ("none", None)]
)
def test_the_allocation_curve_without_telemetry(given: str | None, every: int | str | None) -> None:
    found = PdynArguments(telemetry="none", allocation=given).callbacks()
    assert [callback.every for callback in found] == ([] if every is None else [every])


def test_telemetry_without_the_allocation_curve() -> None:
    telemetry, findings = PdynArguments(allocation="none").callbacks()
    assert isinstance(telemetry, TelemetryCallback) and isinstance(findings, FindingsCallback)
    with pytest.raises(ValueError, match="allocation must be none, auto, log.*'often'"):
        PdynArguments(allocation="often")


def test_options_become_callbacks_beside_training_arguments() -> None:
    parser = HfArgumentParser((TrainingArguments, PdynArguments))
    _, ours = parser.parse_args_into_dataclasses(
        "--output_dir x --use_cpu --optim padam --optim_args p=0.4 --telemetry layers --telemetry_every 7 "
        "--p_control gradient --p_min 0.1 --p_max 0.55 --p_step 0.03 --p_threshold 1.4 --p_interval 50 "
        "--schedule weight_decay.attention=cosine:0.1..0".split()
    )
    schedule, control, telemetry, allocation, _ = ours.callbacks()
    assert allocation.per_layer
    assert isinstance(schedule, ScheduleCallback)
    assert (schedule.field, schedule.label, schedule.schedule.kind) == ("weight_decay", "attention", "cosine")
    assert isinstance(control, PControlCallback)
    assert control.interval == 50
    config = control.config
    assert (config.p_min, config.p_max, config.p_step, config.threshold) == (0.1, 0.55, 0.03, 1.4)
    assert isinstance(telemetry, TelemetryCallback)
    assert (telemetry.every, telemetry.per_layer) == (7, True)


@pytest.mark.parametrize(("given", "every"), [("epoch", "epoch"), ("50", 50), (50, 50)])
def test_spectra_are_measured_when_asked_for(given: str, every: int | str) -> None:
    *_, spectral, _ = PdynArguments(spectra=given).callbacks()
    assert isinstance(spectral, SpectralCallback)
    assert spectral.every == every


def test_shutoff_options() -> None:
    shutoff, *_ = PdynArguments(wd_off="0.6", wd_on="0.9", wd_off_labels=["mlp", "lora_A"]).callbacks()
    assert isinstance(shutoff, WeightDecayShutoffCallback)
    assert (str(shutoff.at), str(shutoff.until), shutoff.labels) == ("0.6", "0.9", ["mlp", "lora_A"])


def test_a_shutoff_by_target() -> None:
    (arguments,) = HfArgumentParser(PdynArguments).parse_args_into_dataclasses(["--wd_off", "a_t=-0.05"])
    assert arguments.callbacks()[0].at == DecayTarget("a_t", -0.05)
    (arguments,) = HfArgumentParser(PdynArguments).parse_args_into_dataclasses(
        ["--wd_off=lora/nuc_over_fro=2.5", "--spectra", "50"]
    )
    shutoff, *others = arguments.callbacks()
    assert shutoff.at == DecayTarget("lora/nuc_over_fro", 2.5)
    assert [callback.every for callback in others if isinstance(callback, SpectralCallback)] == [50]


def test_sample_loss_options() -> None:
    *_, samples, _ = PdynArguments(sample_losses=50, sample_losses_test=20).callbacks()
    assert isinstance(samples, SampleLossCallback)
    assert (samples.train_probe, samples.test_probe) == (50, 20)


def test_callbacks_are_fresh_for_every_trainer() -> None:
    arguments = PdynArguments(p_schedule="linear:0.5..0.4")
    assert not set(map(id, arguments.callbacks())) & set(map(id, arguments.callbacks()))


def test_help_shows_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        HfArgumentParser(PdynArguments).parse_args(["--help"])
    shown = capsys.readouterr().out
    for option in PdynArguments.__dataclass_fields__:
        assert f"--{option}" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"telemetry": "all"}, "telemetry must be one of none, global, layers, got 'all'"),
        ({"p_control": "gradients"}, "p_control must be one of none, gradient.*Did you mean 'gradient'"),
        ({"p_control": "gradient", "p_min": 0.7}, "p_min must not exceed p_max, got p_min=0.7 and p_max=0.6"),
        ({"p_control": "gradient", "p_threshold": 0.9}, r"\(tau_b\) must be greater than 1, got 0.9"),
        ({"p_control": "gradient", "p_interval": "epochs"}, "p_interval must be auto, epoch or a number.*got 'epochs'"),
        ({"p_control": "gradient", "p_interval": "0"}, "number of optimizer steps >= 1, got '0'"),
        ({"spectra": "epochs"}, "spectra must be none, epoch or a number.*got 'epochs'. Did you mean 'epoch'"),
        ({"spectra": "0"}, "spectra must be none, epoch or a number of optimizer steps >= 1, got '0'"),
        ({"p_min": 0.1}, "p_min would have no effect: set --p_control gradient too"),
        ({"wd_on": "0.9"}, "wd_on would have no effect: set --wd_off 0.5 too"),
        ({"p_control": "gradient", "p_schedule": "0.4"}, "would both write p"),
        ({"p_control": "gradient", "schedule": ["p=0.4"]}, "would both write p"),
        ({"wd_off": "0.5", "schedule": ["weight_decay=0.1"]}, "would both write it"),
        ({"wd_off": "soon"}, "'soon' is neither a moment of training nor a target"),
        ({"wd_off": "a_t=0.1"}, "a target must be negative, got 0.1"),
        ({"wd_off": "lora/nuc_over_fro=2"}, "spectra measure, and they are off. Set --spectra 50"),
        ({"wd_off": "a_t=-1", "wd_on": "a_t=-2"}, "'a_t=-2' is no moment of training"),
        ({"wd_off": "0.5", "wd_off_labels": "mpl"}, "wd_off_labels must be one of .*got 'mpl'"),
        ({"wd_off": "0.5", "wd_off_labels": ["mpl"]}, "wd_off_labels must be one of .*got 'mpl'. Did you mean 'mlp'"),
        ({"p_schedule": "0.4", "schedule": ["p=0.3"]}, "p has two schedules"),
        ({"sample_losses": -1}, "sample_losses must be a number of samples >= 0, got -1"),
        ({"sample_losses_test": 5}, "sample_losses_test would have no effect: set --sample_losses 1000 too"),
        ({"schedule": ["weight_decay"]}, r"schedule takes FIELD\[.LABEL\]=SCHEDULE, got 'weight_decay'"),
        ({"schedule": ["p.nrom=0.1"]}, "got 'nrom'. Did you mean 'norm'"),
        ({"schedule": ["lr=0.1"]}, "The learning rate is the Trainer's"),
        ({"schedule": [10]}, r"schedule takes FIELD\[.LABEL\]=SCHEDULE, got 10"),
        ({"schedule": ["eps=-1"]}, "A schedule of eps must be >= 0, got -1"),
        ({"schedule": ["initial_lr=0.1"]}, "Schedule lr instead"),
        ({"p_schedule": "1000"}, r"must be in \[-2, 2\], got 1000"),
        ({"p_control": "gradient", "p_max": 1e9}, r"p_max must be in \[-2, 2\], got 1e\+09"),
        ({"wd_off": "9" * 400}, "is no moment of training"),
        ({"sample_losses": 1.5}, "sample_losses must be a number of samples >= 0, got 1.5"),
        ({"telemetry": "none", "telemetry_every": 5}, "telemetry_every would have no effect"),
        ({"telemetry_every": 0}, "telemetry_every must be at least 1 optimizer step, got 0"),
    ],
)
def test_nonsense_is_refused_when_parsed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PdynArguments(**options)


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ({"p_control": "gradient"}, {"optim": "sgd"}, "got optim='sgd'. Set --optim padam"),
        ({"p_schedule": "0.4"}, {"optim": "adamw_torch"}, "got optim='adamw_torch'"),
        ({"p_control": "gradient"}, {"optim_args": "p=0.9"}, "got p=0.9"),
        ({"p_control": "gradient", "p_max": 0.4}, {}, "got p=0.5"),
        ({}, {"optim_args": "pp=1"}, "Unknown key 'pp'"),
        ({"wd_off": "0.5"}, {}, "weight_decay is 0"),
        ({}, {"weight_decay": None}, "weight_decay must be a number >= 0, got None"),
    ],
)
def test_what_cannot_be_meant_beside_training_arguments(
    tmp_path: Path, ours: dict[str, Any], theirs: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        PdynArguments(**ours).check(arguments(tmp_path, **theirs))


def test_what_can_be_meant_passes(tmp_path: Path) -> None:
    PdynArguments(p_control="gradient", wd_off="0.5").check(arguments(tmp_path, weight_decay=0.1))
    PdynArguments(schedule="p=0.4").check(arguments(tmp_path))
    PdynArguments(wd_off="0.5").check(arguments(tmp_path, optim_args="weight_decay.mlp=0.1"))
    PdynArguments().check(arguments(tmp_path, optim="sgd"))


def test_values_of_a_configuration_file(tmp_path: Path) -> None:
    """YAML and dicts bring numbers where the command line brings text."""
    path = tmp_path / "options.yaml"
    path.write_text("wd_off: 0.6\np_control: gradient\np_interval: 50\n")
    (ours,) = HfArgumentParser(PdynArguments).parse_yaml_file(str(path))
    shutoff, control, *_ = ours.callbacks()
    assert (str(shutoff.at), control.interval) == ("0.6", 50)


def test_control_by_target() -> None:
    ours = PdynArguments(p_control="target", p_target="bias_share=hold", p_target_label="norm", p_step=0.1)
    target, *_ = ours.callbacks()
    assert isinstance(target, PTargetCallback)
    assert (str(target.target), target.label, target.config.p_step) == ("bias_share=hold", "norm", 0.1)


def test_labels_apart_may_have_a_writer_each(tmp_path: Path) -> None:
    by_target = {"p_control": "target", "p_target": "lr_factor=1", "p_target_label": "norm", "p_interval": "2"}
    for options in (
        {**by_target, "p_schedule": "linear:0.5..0.4"},
        {"p_control": "gradient", "p_interval": "2", "schedule": ["p.norm=0.4"]},
        {"wd_off": "0.5", "wd_off_labels": "attention", "schedule": ["weight_decay.mlp=linear:0.1..0"]},
    ):
        callbacks = PdynArguments(**options).callbacks()  # type: ignore[arg-type]
        trainer(tmp_path, callbacks=callbacks, weight_decay=0.1, max_steps=8).train()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"p_control": "target"}, "needs p_target"),
        ({"p_target": "lr_factor=2"}, "no effect with p_control=none: set --p_control target"),
        ({"p_target_label": "norm"}, "no effect with p_control=none: set --p_control target"),
        ({"p_control": "gradient", "p_target": "lr_factor=2"}, "no effect with p_control=gradient: set --p_control t"),
        ({"p_control": "target", "p_target": "lr_factor=2", "p_threshold": 1.5}, "p_threshold"),
        ({"p_control": "target", "p_target": "lr_factor=2", "p_target_label": "norms"}, "norms.*norm"),
        ({"p_control": "target", "p_target": "lr=2"}, "lr_factor.*'lr'"),
    ],
)
def test_what_no_control_by_target_can_mean(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        PdynArguments(**options)
