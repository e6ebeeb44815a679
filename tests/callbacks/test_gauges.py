"""What telemetry has of every optimizer, and that what is missing is said once, with the reason."""

from pathlib import Path

import pytest

from tests.callbacks.gauges_table import GAUGES, OPTIMIZERS, installed, measure

ALL = set(GAUGES)
NO_MOMENTS = {"v_hat", "allocation curve"}
NO_EXPONENT = {"N_p", "implicit bias"}
MISSING = {
    "padam": set(),
    "AdamW, foreach": set(),
    "AdamW, fused": set(),
    "SGD": NO_MOMENTS,
    "Adafactor": NO_MOMENTS | NO_EXPONENT,
    "Muon": NO_MOMENTS | NO_EXPONENT,
    "AdamW of schedule-free": NO_MOMENTS | NO_EXPONENT,
    "AdamW8bit of torchao": set(),
    "8-bit AdamW of bitsandbytes": set(),
}
SAID = {"v_hat": "v_hat_mean", "N_p": "N_p", "implicit bias": "implicit_bias", "allocation curve": "allocation curve"}


@pytest.mark.filterwarnings("ignore")  # of the packages
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gauges_are_there_or_said_to_be_missing(tmp_path: Path, name: str) -> None:
    if not installed(name):
        pytest.skip(f"{OPTIMIZERS[name][1]} is not installed")
    found, said = measure(name, tmp_path)
    assert {gauge for gauge, there in found.items() if not there} == MISSING[name]
    for gauge in SAID:
        about = [text for text in said if SAID[gauge] in text]
        assert len(about) == (gauge in MISSING[name]), said
