"""The same training however it is launched: the same statistics, decisions and weights."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import transformers
from packaging.version import Version

from hf_pdyn.policy.algorithm1 import ControlState, next_p
from tests.distributed.matrix import CASES, LAUNCHES, TOLERANCE, difference, why_impossible
from tests.distributed.trainer_worker import CONTROL, INTERVAL

pytestmark = pytest.mark.distributed

Launched = Callable[[str], list[dict[str, Any]]]
MANY = [name for name in LAUNCHES if name != "plain"]


def grouped(launches: Iterable[str]) -> list[Any]:
    """So that one worker of pytest-xdist waits for a launch, and not each; what cannot be launched is skipped."""
    return [
        pytest.param(
            launch,
            marks=[
                pytest.mark.xdist_group(launch),
                pytest.mark.skipif(why_impossible(launch) is not None, reason=str(why_impossible(launch))),
            ],
        )
        for launch in launches
    ]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("launch", grouped(MANY))
def test_a_launch_equals_one_process(launched: Launched, launch: str, case: str, record_property: Any) -> None:
    reason = why_impossible(launch, case)
    if reason:
        pytest.skip(reason)
    found = difference([rank[case] for rank in launched(launch)], launched("plain")[0][case])
    record_property("cell", f"{launch:8} {case:32} {found}")
    assert found.agrees_but_for_noise if "accumulation" in case else found.agrees, str(found)


@pytest.mark.parametrize("launch", grouped(LAUNCHES))
def test_statistics_are_of_the_gradients_before_clipping(launched: Launched, launch: str) -> None:
    """By the total norm that clipping itself reports; clipped they are what it allows."""
    for case in ("full, clipped at every step", "LoRA, clipped at every step"):
        for record in launched(launch)[0][case]["logs"]:
            norm, allowed = record["grad_norm"], CASES[case]["max_grad_norm"]
            assert norm > allowed
            assert math.hypot(record["pdyn/D_w"], record["pdyn/D_b"]) == pytest.approx(norm, rel=TOLERANCE)
            # torch adds 1e-6 to the norm it divides by.
            clipped = allowed * norm / (norm + 1e-6)
            assert math.hypot(record["pdyn/D_w_clipped"], record["pdyn/D_b_clipped"]) == pytest.approx(
                clipped, rel=1e-5
            )


@pytest.mark.parametrize("launch", grouped(LAUNCHES))
def test_named_groups_are_there(launched: Launched, launch: str) -> None:
    report = launched(launch)[0]["full, named groups"]
    assert report["names"] == ["", "body"]
    for record in report["logs"]:
        assert 0 < record["pdyn/by_group/body/grad_share"] < 1
        assert record["pdyn/by_group/body/lr"] == pytest.approx(0.5 * record["learning_rate"])


@pytest.mark.parametrize("launch", grouped(LAUNCHES))
def test_decisions_are_those_of_the_gradients_before_clipping(launched: Launched, launch: str) -> None:
    """Algorithm 1 decides the same over the logged norms, and otherwise over the clipped ones."""
    report = launched(launch)[0]["full, clipped at every step"]
    assert decided(report["logs"], "") == report["p"][INTERVAL::INTERVAL]
    assert decided(report["logs"], "_clipped") != report["p"][INTERVAL::INTERVAL]


def decided(logs: list[dict[str, float]], suffix: str) -> list[float]:
    """p after each interval but the last, which no step has used."""
    state, sequence = ControlState(p=0.4), []
    for start in range(0, len(logs) - INTERVAL, INTERVAL):
        interval = logs[start : start + INTERVAL]
        weight_norm, bias_norm = (sum(r[f"pdyn/D_{x}{suffix}"] for r in interval) / INTERVAL for x in "wb")
        state = next_p(state, weight_norm=weight_norm, bias_norm=bias_norm, config=CONTROL)
        sequence.append(state.p)
    return sequence


def test_the_compared_decisions_move_p(launched: Launched) -> None:
    report = launched("plain")[0]
    assert all(len(set(report[case]["p"])) > 1 for case in CASES if "padam" in case)


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"),
    reason="transformers 5.2 normalises accumulated losses otherwise, with stock AdamW too",
)
@pytest.mark.parametrize("launch", grouped(LAUNCHES))
def test_accumulation_equals_one_batch(launched: Launched, launch: str) -> None:
    for rank in launched(launch):
        found = difference([rank["full, accumulation"]], launched("plain")[0]["full, padam p=.5"])
        assert found.agrees_but_for_noise, str(found)
