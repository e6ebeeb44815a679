"""What measuring reads on a CUDA device: the allocation curve against float64, the implicit bias against the CPU's."""

from typing import Any

import pytest
import torch
from torch import nn

from hf_pdyn import StepStatistics
from hf_pdyn.measure import implicit_bias
from tests.measure.test_power_moments import OPTIMIZERS, TRIED, assert_curve_of_directions, padam, trained

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("p", TRIED)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_curve_is_that_of_directions_computed_anew(name: str, p: float) -> None:
    assert_curve_of_directions(name, p, device="cuda")


def test_the_curve_of_tensors_larger_than_a_part() -> None:
    assert_curve_of_directions("padam", 0.37, width=2**20, device="cuda")


@pytest.mark.parametrize(
    "settings", [{}, {"p": 0.25, "eps": 1e-6}, {"p": 0.37, "update_scale": "adam"}, {"p": 0.0, "fused": False}], ids=str
)
def test_the_implicit_bias_is_the_cpu_s(settings: dict[str, Any]) -> None:
    """To 1e-4: gradients that the device rounds otherwise pass through four steps."""

    def sums(device: str) -> torch.Tensor:
        def make(model: nn.Module) -> Any:
            return padam(model, **settings)

        _, optimizer, statistics = trained(make, width=3000, device=device)
        assert isinstance(statistics, StepStatistics)
        return implicit_bias.coefficient_sums(optimizer, list(statistics.scopes_of)).cpu().double()

    torch.testing.assert_close(sums("cuda"), sums("cpu"), rtol=1e-4, atol=0)
