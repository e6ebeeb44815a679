"""Spectra of weights that are whole, sharded or nowhere whole: those of one process, or said to be unavailable."""

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.launching import launch
from tests.distributed.matrix import LAUNCHES, why_impossible

pytestmark = pytest.mark.distributed

# Weights differ by sums in another order, below 1e-5 after as many steps; a spectrum of few values follows them.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return launch(1, "spectral_worker", tmp_path_factory.mktemp("alone") / "out", {"plain": {}})[0]["plain"]


def cases(name: str) -> dict[str, dict[str, Any]]:
    options = LAUNCHES[name].options
    # Two layers, of each K^T Q and a LoRA: the second call is that of layer 1 before the first step.
    return {"whole": options, "failing": {**options, "fails_at": 2}}


@pytest.mark.parametrize("name", ["DDP", "FSDP2"])
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

    # The main process fails within a measurement, and nobody waits for it then or at the coming ones.
    assert first["failing"]["steps"] == second["failing"]["steps"] == 6
    assert [len(rank["failing"]["said"]) for rank in (first, second)] == [1, 0]
    assert not first["failing"]["rows"] and not any(map(spectra, first["failing"]["logs"]))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("FSDP1", LAUNCHES["FSDP1"].options, "FSDP1 keeps flat pieces of weights; use FSDP2"),
    ],
)
def test_where_nothing_is_whole_the_main_process_says_so(
    tmp_path: Path, name: str, options: dict[str, Any], said: str
) -> None:
    reason = why_impossible(name)
    if reason:
        pytest.skip(reason)
    first, second = launch(2, "spectral_worker", tmp_path / "out", {name: options})
    assert [said in text for text in first[name]["said"]] == [True] and not second[name]["said"]
    assert first[name]["steps"] == 6 and not first[name]["rows"]


def spectra(record: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in record.items() if name.startswith("pdyn/spectrum/")}
