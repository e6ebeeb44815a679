import math

import pytest
import torch

from hf_pdyn import Padam
from hf_pdyn.measure import implicit_bias

# float32 has 24 bits.
SUM_TOLERANCE = 1e-6


@pytest.mark.parametrize("p", [-0.4, 0.0, 0.25, 0.5, 0.9])
def test_power_norm_has_the_gradient_of_the_modified_flow(p: float) -> None:
    """d_j N_p = g_j / (g_j^2 + eps)^p, from which the modified flow of the p-update is written."""
    grad = torch.randn(50, dtype=torch.float64, requires_grad=True)
    eps = 1e-3
    (derivative,) = torch.autograd.grad(_differentiable_power_norm(grad, p, eps), grad)
    torch.testing.assert_close(derivative, grad.detach() / (grad.detach() ** 2 + eps) ** p)
    value = implicit_bias.power_norm(grad.detach(), p=p, eps=eps)
    torch.testing.assert_close(value, _differentiable_power_norm(grad, p, eps).detach())


def _differentiable_power_norm(grad: torch.Tensor, p: float, eps: float) -> torch.Tensor:
    return ((grad**2 + eps) ** (1 - p)).sum() / (2 * (1 - p))


def test_power_norm_at_its_named_exponents() -> None:
    grad, eps = torch.randn(100, dtype=torch.float64), 1e-6
    one_norm = implicit_bias.perturbed_one_norm(grad, eps=eps)
    torch.testing.assert_close(implicit_bias.power_norm(grad, p=0.5, eps=eps), one_norm)
    torch.testing.assert_close(one_norm, (grad**2 + eps).sqrt().sum())
    torch.testing.assert_close(implicit_bias.power_norm(grad, p=0.0, eps=0.0), grad.square().sum() / 2)
    torch.testing.assert_close(implicit_bias.power_norm(grad, p=1.0, eps=eps), (grad**2 + eps).log().sum() / 2)


@pytest.mark.parametrize(("p", "sign"), [(0.2, 1), (0.3, -1), (0.0, 1), (-0.2, 1), (0.5, -1)])
def test_the_sign_of_the_implicit_bias_changes_at_p_star(p: float, sign: int) -> None:
    """On E = theta^2 / 2 a penalty of N_p makes the p-update faster than its flow, theta' = -theta^(1-2p).

    At betas of 0.2 and 0.5, C is 1.5 and 3, and p* = 1.5 / (2 * 3) = 1/4.
    """
    lr, steps = 1e-3, 300
    theta = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = Padam([theta], lr=lr, betas=(0.2, 0.5), p=p, eps=1e-30, weight_decay=0.0)
    for _ in range(steps):
        theta.grad = theta.detach().clone()
        optimizer.step()
    flow = math.exp(-lr * steps) if p == 0 else (1 - 2 * p * lr * steps) ** (1 / (2 * p))
    assert math.copysign(1, flow - theta.item()) == sign
    assert abs(flow - theta.item()) < lr  # of second order, not another flow


def test_norms_of_low_precision_and_complex_gradients() -> None:
    grad = torch.randn(64, generator=torch.Generator().manual_seed(0)) * 1e-4
    half = grad.half()
    expected = (half.double() ** 2 + 1e-16).sqrt().sum()
    torch.testing.assert_close(implicit_bias.perturbed_one_norm(half, eps=1e-16), expected, rtol=SUM_TOLERANCE, atol=0)
    z = torch.randn(8, dtype=torch.complex64)
    torch.testing.assert_close(
        implicit_bias.perturbed_one_norm(z, eps=1e-6), implicit_bias.perturbed_one_norm(torch.view_as_real(z), eps=1e-6)
    )
