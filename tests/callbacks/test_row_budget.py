"""Runs with very many layers or records: what they leave out, and that they say so once."""

from pathlib import Path

import pytest

from hf_pdyn import AllocationCallback, SpectralCallback, TelemetryCallback
from hf_pdyn.grouping import layer_names
from hf_pdyn.policy import row_budget
from hf_pdyn.run_dir.tables import ALLOCATION, LAYERS, read_table
from tests.training import trainer, training_logs


def said(caplog: pytest.LogCaptureFixture, what: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if what in record.getMessage()]


def test_many_layers_are_joined_and_said_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trainer(tmp_path / "all", callbacks=[TelemetryCallback(per_layer=True)]).train()
    assert not said(caplog, "limited")
    monkeypatch.setattr(layer_names, "MOST_LAYERS", 8)
    run = trainer(tmp_path / "joined", callbacks=[TelemetryCallback(per_layer=True)])
    run.train()
    (text,) = said(caplog, "limited")
    assert "15 layers are taken as 5, by the first 3 segments of their names" in text
    rows, joined = (read_table(tmp_path / name, LAYERS)[0].to_pylist() for name in ("all", "joined"))
    names = {row["layer"] for row in joined}
    assert names == {"transformer.wte", "transformer.wpe", "transformer.ln_f", "transformer.h.0", "transformer.h.1"}
    # A joined layer is all of its layers: squares of parameters' norms add up.
    own, whole = (
        {
            row["layer"]: row["value"]
            for row in found
            if (row["step"], row["part"], row["name"]) == (2, "weight", "param_norm")
        }
        for found in (rows, joined)
    )
    parts = sum(value**2 for layer, value in own.items() if layer.startswith("transformer.h.0."))
    assert whole["transformer.h.0"] ** 2 == pytest.approx(parts, rel=1e-6)
    assert not any("pdyn/G_w_over_G_b_invariant" in record for record in training_logs(run.state.log_history))


def test_rows_of_many_records_are_thinned_and_said_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(row_budget, "MOST_VALUES", 1200)
    callbacks = [TelemetryCallback(per_layer=True), AllocationCallback("log"), SpectralCallback(1)]
    run = trainer(tmp_path, max_steps=15, logging_steps=1, callbacks=callbacks)
    run.train()
    (text,) = said(caplog, "pdyn telemetry is limited")
    assert "rows of layers are kept of one record in 3, every 3 steps, and of the last" in text
    rows = read_table(tmp_path, LAYERS)[0].to_pylist()
    assert {row["step"] for row in rows if row["name"] == "grad_norm"} == {3, 6, 9, 12, 15}
    assert len(training_logs(run.state.log_history)) == 15  # the log has every record
    (text,) = said(caplog, "pdyn allocation curves are kept")
    curves = {row["step"] for row in read_table(tmp_path, ALLOCATION)[0].to_pylist()}
    assert 15 in curves and 1 < len(curves) < 8
    assert not said(caplog, "rows of spectra")
    monkeypatch.setattr(row_budget, "MOST_VALUES", 60)
    trainer(tmp_path / "spectra", max_steps=15, callbacks=[SpectralCallback(1)]).train()
    (text,) = said(caplog, "rows of spectra")
    steps = {row["step"] for row in read_table(tmp_path / "spectra", LAYERS)[0].to_pylist()}
    assert {0, 15} <= steps and len(steps) < 16


def test_auto_curves_are_as_few_as_their_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_budget, "MOST_VALUES", 1)
    trainer(tmp_path, max_steps=12, logging_steps=1, callbacks=[AllocationCallback()]).train()
    assert {row["step"] for row in read_table(tmp_path, ALLOCATION)[0].to_pylist()} == {1}
