"""Other settings of the same launches, which lay parameters and gradients out otherwise."""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from tests.distributed.launching import start
from tests.distributed.matrix import CASES, LAUNCHES, difference, reports, why_impossible, zero

pytestmark = pytest.mark.distributed

TRAININGS = ("full, padam p=.25 matched", "full, clipped at every step")


def zero_with(stage: int, **settings: Any) -> dict[str, Any]:
    options = copy.deepcopy(zero(stage))
    options["deepspeed"]["zero_optimization"].update(settings)
    options["deepspeed"]["zero_force_ds_cpu_optimizer"] = False
    return options


def fsdp_1(strategy: str) -> dict[str, Any]:
    return {**copy.deepcopy(LAUNCHES["FSDP1"].options), "fsdp": f"{strategy} auto_wrap"}


VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "ZeRO-2": {
        "optimizer on the CPU": zero_with(2, offload_optimizer={"device": "cpu"}),
        "round robin": zero_with(2, round_robin_gradients=True),
    },
    "ZeRO-3": {
        "many sub-groups": zero_with(3, sub_group_size=500, stage3_param_persistence_threshold=0),
        "optimizer on the CPU": zero_with(3, offload_optimizer={"device": "cpu"}),
        "all on the CPU": zero_with(3, offload_optimizer={"device": "cpu"}, offload_param={"device": "cpu"}),
        "hpZ": zero_with(3, zero_hpz_partition_size=1),
    },
    "FSDP1": {
        "parameters whole until the step": fsdp_1("shard_grad_op"),
        "nothing sharded": fsdp_1("no_shard"),
    },
}


@pytest.fixture(scope="module")
def varied(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[dict[str, Any]]]:
    @cache
    def run(launch: str) -> list[dict[str, Any]]:
        out = tmp_path_factory.mktemp("variants") / "out"
        cases = {
            f"{variant}: {training}": {**options, **CASES[training]}
            for variant, options in VARIANTS[launch].items()
            for training in TRAININGS
        }
        start("trainer_worker", LAUNCHES[launch].processes, out, cases)
        return reports(launch, out)

    return run


@pytest.mark.parametrize("training", TRAININGS)
@pytest.mark.parametrize(
    ("launch", "variant"),
    [
        pytest.param(
            launch,
            variant,
            marks=[
                pytest.mark.xdist_group(f"{launch}, varied"),
                pytest.mark.skipif(why_impossible(launch) is not None, reason=str(why_impossible(launch))),
            ],
        )
        for launch, variants in VARIANTS.items()
        for variant in variants
    ],
)
def test_a_variant_equals_one_process(
    varied: Callable[[str], list[dict[str, Any]]],
    launched: Callable[[str], list[dict[str, Any]]],
    launch: str,
    variant: str,
    training: str,
) -> None:
    ranks = [rank[f"{variant}: {training}"] for rank in varied(launch)]
    found = difference(ranks, launched("plain")[0][training])
    assert found.agrees, str(found)
