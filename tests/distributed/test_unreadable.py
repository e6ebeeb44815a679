"""Launches in which no process can tell whose gradients it steps: said, never zeros; the training itself is right."""

from types import SimpleNamespace
from typing import Any

import pytest

from hf_pdyn.integrations.deepspeed import stage_3
from tests.distributed.launching import launch
from tests.distributed.matrix import TOLERANCE, zero

pytest.importorskip("deepspeed")
pytestmark = [pytest.mark.distributed, pytest.mark.xdist_group("unreadable")]

# DeepSpeed then has an optimizer of its own, which hands ours parts of parameters as stages 1 and 2 do.
BF16_OPTIMIZER = {
    "bf16": True,
    "silent": True,
    "deepspeed": {
        **zero(1)["deepspeed"],
        "bf16": {"enabled": True},
        "data_types": {"grad_accum_dtype": "fp32"},
    },
}
CASES: dict[str, dict[str, Any]] = {
    "no ZeRO": zero(0),
    "no ZeRO, control": {**zero(0), "control": True},
    "ZeRO-1 in bf16, matched": {**BF16_OPTIMIZER, "optim_args": "p=0.25,update_scale=adam"},
    "ZeRO-1 in bf16, skip": {**BF16_OPTIMIZER, "optim_args": "nonfinite=skip"},
}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return launch(2, "unreadable_worker", tmp_path_factory.mktemp("unreadable") / "out", CASES)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return launch(1, "unreadable_worker", tmp_path_factory.mktemp("alone") / "out", {"plain": {}})[0]["plain"]


def test_metrics_are_missing_with_the_reason(ranks: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    assert "pdyn/D_w" in alone["logs"][0]
    for rank in ranks:
        report = rank["no ZeRO"]
        assert report["engine"] == "DeepSpeedEngine"
        (said,) = report["said"]
        assert "only ZeRO can be read" in said
        assert "use it, DDP or FSDP2" in said
        metrics = {name for record in report["logs"] for name in record if name.startswith("pdyn/")}
        # What the groups say needs no gradient.
        assert not {name for name in metrics if name.split("/")[1].startswith(("D_", "G_", "update", "N_p", "one"))}
        assert report["weights"] == pytest.approx(alone["weights"], rel=TOLERANCE)


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("no ZeRO, control", "Algorithm 1 cannot read the gradients: DeepSpeed steps with its "),
        ("ZeRO-1 in bf16, matched", 'update_scale="adam" matches the size of the whole update, and this launch has it'),
        ("ZeRO-1 in bf16, skip", 'nonfinite="skip" looks for NaN and infinity in the whole gradient, and this launch'),
    ],
)
def test_what_needs_the_gradients_is_refused(ranks: list[dict[str, Any]], case: str, said: str) -> None:
    for rank in ranks:
        assert rank[case]["error"].startswith(said)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, None),
        ({"offload_optimizer": True, "partial_offload": 1.0}, None),
        ({"swap_optimizer": True}, "offload to NVMe"),
        ({"params_in_nvme_and_cpu": True}, "offload to NVMe"),
        ({"offload_optimizer": True, "partial_offload": 0.5}, "partial offload"),
        ({"zenflow": True}, "zenflow"),
        ({"use_muon": True}, "use_muon"),
    ],
)
def test_ways_of_its_own_that_zero_3_steps_in(settings: dict[str, Any], reason: str | None) -> None:
    said = stage_3.why_special(SimpleNamespace(**dict.fromkeys(stage_3._READ), **settings))
    assert said == reason if reason is None else said is not None and said.startswith(reason)


def test_a_version_that_moved_what_is_read_is_named() -> None:
    said = stage_3.why_special(SimpleNamespace(**dict.fromkeys(stage_3._READ[1:])))
    assert said == f"version, in which SimpleNamespace has no {stage_3._READ[0]},"
