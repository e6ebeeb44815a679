"""What a measured step has of optimizers that keep moments in 8 bits, beside AdamW with the same gradients."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import nn

from hf_pdyn import StepStatistics
from hf_pdyn.integrations import low_bit
from hf_pdyn.measure.windows import Reading, Scope

pytestmark = pytest.mark.filterwarnings("ignore")  # of the packages

OPTIONS: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.0}
STEPS = 6


def _torchao(model: nn.Module) -> torch.optim.Optimizer:
    from torchao.optim import AdamW8bit

    return AdamW8bit(model.parameters(), **OPTIONS)


def _bitsandbytes(model: nn.Module) -> torch.optim.Optimizer:
    import bitsandbytes

    return bitsandbytes.optim.AdamW(model.parameters(), optim_bits=8, min_8bit_size=256, **OPTIONS)


LOW_BIT: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {"torchao": _torchao, "bitsandbytes": _bitsandbytes}


def read(make: Callable[[nn.Module], torch.optim.Optimizer]) -> tuple[Reading, torch.optim.Optimizer]:
    """The last of some steps with gradients of sizes that differ by layer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.LayerNorm(128), nn.Linear(128, 64, bias=False))
    optimizer = make(model)
    statistics = StepStatistics(optimizer, model)
    window = statistics.window()
    for _ in range(STEPS):
        for i, param in enumerate(model.parameters()):
            param.grad = torch.randn_like(param) * 10.0**-i
        window.read()
        statistics.measure_next_step()
        optimizer.step()
    return window.read(), optimizer


@pytest.mark.parametrize("package", LOW_BIT)
def test_all_quantities_are_those_of_adamw_but_for_rounding(package: str) -> None:
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    found, optimizer = read(LOW_BIT[package])
    states = list(optimizer.state.values())
    assert any(not low_bit.in_floats(state, "exp_avg_sq") for state in states)  # or nothing was to be read
    expected, _ = read(lambda model: torch.optim.AdamW(model.parameters(), **OPTIONS))
    for quantity in ("N_p", "one_norm", "v_hat_mean", "implicit_bias"):
        own, other = found.quantities[quantity], expected.quantities[quantity]
        assert own.keys() == other.keys()
        for scope in (Scope("weight"), Scope("bias_like"), Scope("weight", "0"), Scope("weight", "2")):
            # Gradients are the same; v is good to some percent.
            assert own[scope] == pytest.approx(other[scope], rel=1e-5 if quantity in ("N_p", "one_norm") else 0.05)
