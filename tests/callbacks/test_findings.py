"""FindingsCallback in a Trainer: each finding once, in the log and as an alert."""

import logging
from pathlib import Path
from typing import Any

import pytest

from hf_pdyn import FindingsCallback, PControlCallback, PdynArguments, TelemetryCallback
from hf_pdyn.callbacks import findings
from tests.training import trainer


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    messages = [record.getMessage() for record in caplog.records if record.name == "hf_pdyn.callbacks.findings"]
    return [message.rsplit("(", 1)[1].rstrip(")") for message in messages]


def train(out: Path, *callbacks: Any, **options: Any) -> Any:
    run = trainer(out, callbacks=[TelemetryCallback(), FindingsCallback(), *callbacks], **options)
    run.train()
    return run


def test_a_finding_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(tmp_path, max_grad_norm=1e-3, logging_steps=1)
    assert said(caplog) == ["always_clipped"]


def test_what_is_of_whole_runs_comes_at_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(tmp_path, weight_decay=5.0, logging_steps=1)
    assert said(caplog) == ["decay_never_off"]


def test_intervals_are_known_once_all_callbacks_have_begun(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(tmp_path, PControlCallback(interval=1), logging_steps=1)
    assert "noisy_control" in said(caplog)


def test_a_healthy_run_is_silent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(tmp_path, logging_steps=1)
    assert said(caplog) == []


def test_a_second_training_says_it_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = train(tmp_path, max_grad_norm=1e-3, logging_steps=1)
    run.train()
    assert said(caplog) == ["always_clipped"] * 2


def test_trackio_gets_an_alert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    alerts: list[tuple[str, str]] = []
    monkeypatch.setattr(findings.trackio, "alert", lambda _, title, text: alerts.append((title, text)))
    train(tmp_path, max_grad_norm=1e-3, logging_steps=1)
    assert [title for title, _ in alerts] == ["always_clipped"]


def test_a_failure_ends_nothing_but_findings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise LookupError("no such record")

    monkeypatch.setattr(findings, "findings", fail)
    with pytest.warns(UserWarning, match="LookupError: no such record"):
        run = train(tmp_path, logging_steps=1)
    assert run.state.global_step == 12
    assert all("pdyn/D_w" in record for record in run.state.log_history if "loss" in record)


def test_telemetry_brings_it(caplog: pytest.LogCaptureFixture) -> None:
    assert any(isinstance(callback, FindingsCallback) for callback in PdynArguments().callbacks())
    assert PdynArguments(telemetry="none").callbacks() == []
    logging.getLogger("hf_pdyn").setLevel(logging.NOTSET)
