"""A long run with bf16 parameters, against the same moments in float64."""

import copy

import torch
from torch import nn

from hf_pdyn import Padam

BETA2 = 0.999
STEPS = 2000

# Of v_hat, relative. In float32 beta2 is 1.3e-8 larger than 0.999, which to the 2,000th power is 2.6e-5.
TOLERANCE = 5e-5


def gradients() -> list[torch.Tensor]:
    """In bf16, of a tenth of their size after 500 steps: v must fall to follow them."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(-3, 0, 16)
    noise = [1 + 0.3 * torch.randn(16, generator=generator) for _ in range(STEPS)]
    return [(scales * (1.0 if t < 500 else 0.1) * n).to(torch.bfloat16) for t, n in enumerate(noise)]


def test_a_second_moment_in_float32_follows_where_one_in_bf16_stalls() -> None:
    """0.999 v rounds to v in bf16, whose neighbouring numbers lie 2^-8 to 2^-7 apart: there v never falls."""
    param = nn.Parameter(torch.ones(16, dtype=torch.bfloat16))
    optimizer = Padam([param], lr=1e-3, betas=(0.9, BETA2), weight_decay=0.0)
    exact = torch.zeros(16, dtype=torch.float64)
    stalled = torch.zeros(16, dtype=torch.bfloat16)
    for t, grad in enumerate(gradients()):
        if t == STEPS // 2:  # through a checkpoint, into an optimizer that has none of this
            stalled_half_way = stalled.clone()
            saved = copy.deepcopy(optimizer.state_dict())
            param = nn.Parameter(param.detach().clone())
            optimizer = Padam([param], lr=1e-3, betas=(0.9, BETA2), weight_decay=0.0)
            optimizer.load_state_dict(saved)
        param.grad = grad
        optimizer.step()
        exact = BETA2 * exact + (1 - BETA2) * grad.double() ** 2
        stalled.mul_(BETA2).addcmul_(grad, grad, value=1 - BETA2)

    correction = 1 - BETA2**STEPS
    state = optimizer.state[param]
    assert {state[name].dtype for name in ("exp_avg", "exp_avg_sq")} == {torch.float32}
    assert state["step"].item() == STEPS
    torch.testing.assert_close(state["exp_avg_sq"].double() / correction, exact / correction, rtol=TOLERANCE, atol=0)
    assert torch.equal(stalled, stalled_half_way)
    assert (stalled.double() > 2 * exact).all()
