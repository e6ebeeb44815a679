"""Trainers with moments in fewer bits, in every kind of launch: as near to float32 moments as in one process."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from tests.distributed import matrix
from tests.distributed.matrix import LAUNCHES, why_impossible
from tests.distributed.test_matrix import grouped
from tests.training import gpt2

pytestmark = pytest.mark.distributed

TRAININGS: dict[str, str] = {
    "fp32": "p=0.4",
    "16bit": "p=0.4,state_dtype=16bit",
    "8_16bit": "p=0.4,state_dtype=8_16bit",
}
CASES: dict[str, dict[str, Any]] = {
    name: {"model": "full", "optim_args": f"{optim_args},fused=true", "learning_rate": 1e-3}
    for name, optim_args in TRAININGS.items()
}
# Final weights, relative to the way from the first ones: errors of single updates of 0.6 % and 5 % average out.
LARGEST = {"16bit": 0.01, "8_16bit": 0.05}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[dict[str, Any]]]:
    return cache(lambda launch: matrix.run(launch, tmp_path_factory.mktemp("formats") / "out", CASES))


def weights(report: dict[str, Any]) -> torch.Tensor:
    return torch.cat([value.flatten() for _, value in sorted(report["weights"].items())])


@pytest.mark.parametrize("state_dtype", LARGEST)
@pytest.mark.parametrize("launch", grouped(["plain", "DDP", "FSDP2", "ZeRO-2", "ZeRO-3"]))
def test_weights_end_near_those_of_float32_moments(
    trained: Callable[[str], list[dict[str, Any]]], launch: str, state_dtype: str, record_property: Any
) -> None:
    reports = trained(launch)
    assert why_impossible(launch) is None and len(reports) == LAUNCHES[launch].processes
    exact = weights(trained("plain")[0]["fp32"])
    first = weights({"weights": {name: param.detach().double() for name, param in gpt2().named_parameters()}})
    moved = (exact - first).norm()
    distances = []
    for rank in reports:
        assert rank[state_dtype]["p"] == trained("plain")[0]["fp32"]["p"]
        assert ((weights(rank["fp32"]) - exact).norm() / moved) < 1e-4
        distances.append(((weights(rank[state_dtype]) - exact).norm() / moved).item())
        assert all(math.isfinite(value) for record in rank[state_dtype]["logs"] for value in record.values())
    record_property("cell", f"{launch:8} {state_dtype:32} weights {max(distances):.1e} of their way from fp32's")
    assert LARGEST[state_dtype] / 100 < min(distances) <= max(distances) < LARGEST[state_dtype]
