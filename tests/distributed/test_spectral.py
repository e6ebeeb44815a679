"""Spectra of weights that are whole, sharded or nowhere whole: those of one process, or said to be unavailable."""

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.launching import launch
from tests.distributed.matrix import LAUNCHES, why_impossible, zero

pytestmark = pytest.mark.distributed

# Weights differ by sums in another order, below 1e-5 after as many steps; a spectrum of few values follows them.
TOLERANCE = 1e-4


# K^T Q's ratio is 2.9 at the start, and below this at the first measurement.
SWITCHED = {"model": "full", "weight_decay": 10.0, "wd_off": "attention/nuc_over_fro=2.85"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    cases = {"plain": {}, "switched": SWITCHED}
    plain, switched = launch(1, "spectral_worker", tmp_path_factory.mktemp("alone") / "out", cases)[0].values()
    return {**plain, "switched": switched}


def cases(name: str) -> dict[str, dict[str, Any]]:
    options = LAUNCHES[name].options
    # Two layers, of each K^T Q and a LoRA: the second call is that of layer 1 before the first step.
    return {"whole": options, "failing": {**options, "fails_at": 2}, "switched": {**options, **SWITCHED}}


@pytest.mark.parametrize("name", ["DDP", "FSDP2", "ZeRO-3"])
def test_spectra_are_those_of_one_process(tmp_path: Path, name: str, alone: dict[str, Any]) -> None:
    reason = why_impossible(name)
    if reason:
        pytest.skip(reason)
    first, second = launch(2, "spectral_worker", tmp_path / "out", cases(name))
    assert first["whole"]["tensors"] == [LAUNCHES[name].tensor]
    assert first["whole"]["said"] == second["whole"]["said"] == []
    expected = {(row["step"], row["layer"], row["part"], row["name"]): row["value"] for row in alone["rows"]}
    found = {(row["step"], row["layer"], row["part"], row["name"]): row["value"] for row in first["whole"]["rows"]}
    # K^T Q of two heads and whole at three steps, B A at two; of two layers.
    assert len(expected) == (3 * 3 + 2) * 2 * 5
    assert found == pytest.approx(expected, rel=TOLERANCE)
    for record, wanted in zip(first["whole"]["logs"], alone["logs"], strict=True):
        assert spectra(record) == pytest.approx(spectra(wanted), rel=TOLERANCE)

    # Only the main process has the ratio, and all switch weight decay off by it.
    expected_decays = [10.0] * 3 + [0.0] * 3
    assert [run["switched"]["decays"] for run in (alone, first, second)] == [expected_decays] * 3
    said = [record for record in first["switched"]["logs"] if "pdyn/wd_off/step" in record]
    assert [record["pdyn/wd_off/step"] for record in said] == [3]

    # Attention fails on the main process within a measurement; nobody waits for it, and LoRA is measured on.
    assert first["failing"]["steps"] == second["failing"]["steps"] == 6
    assert [len(rank["failing"]["said"]) for rank in (first, second)] == [1, 0]
    assert {row["part"] for row in first["failing"]["rows"]} == {"lora"}
    measured = {name.split("/")[2] for record in first["failing"]["logs"] for name in spectra(record)}
    assert measured <= {"lora", "step"}


def test_deepspeed_has_whole_weights_until_stage_3(tmp_path: Path, alone: dict[str, Any]) -> None:
    pytest.importorskip("deepspeed")
    first, _ = launch(2, "spectral_worker", tmp_path / "out", {"ZeRO-2": zero(2)})
    assert not first["ZeRO-2"]["said"]
    assert spectra(first["ZeRO-2"]["logs"][-1]) == pytest.approx(spectra(alone["logs"][-1]), rel=TOLERANCE)


def test_fsdp1_is_said_to_have_none(tmp_path: Path) -> None:
    reason = why_impossible("FSDP1")
    if reason:
        pytest.skip(reason)
    first, second = launch(2, "spectral_worker", tmp_path / "out", {"FSDP1": LAUNCHES["FSDP1"].options})
    assert_unavailable(first["FSDP1"], second["FSDP1"], "FSDP1 keeps flat pieces of weights; use FSDP2")


def assert_unavailable(first: dict[str, Any], second: dict[str, Any], reason: str) -> None:
    """The main process says so, once, and the training goes on."""
    assert [reason in text for text in first["said"]] == [True] and not second["said"]
    assert first["steps"] == 6 and not first["rows"]


def spectra(record: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in record.items() if name.startswith("pdyn/spectrum/")}
