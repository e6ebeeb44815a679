import math

import pytest
import torch

from hf_pdyn import kernels

# float32 has 24 bits; sums of squares in rows of 512 keep the relative error below about 1e-6.
SUM_TOLERANCE = 1e-6


@pytest.mark.parametrize("numel", [1, 7, 4096, 65_536, 65_537, 3_000_001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_two_norms_equal_float64(numel: int, dtype: torch.dtype) -> None:
    tensors = [torch.randn(numel, generator=torch.Generator().manual_seed(i)).to(dtype) for i in range(2)]
    expected = torch.stack([tensor.double().norm() for tensor in tensors])
    norms = kernels.two_norms(tensors)
    assert norms.dtype == torch.float64
    torch.testing.assert_close(norms, expected, rtol=SUM_TOLERANCE, atol=0)


def test_two_norms_keep_digits_where_float32_sums_lose_them() -> None:
    """torch 2.13's own float32 norm is 0.8 % off here on an AVX-512 CPU."""
    tensor = torch.full((10_000_000,), 0.1)
    assert kernels.two_norms([tensor])[0].item() == pytest.approx(float(tensor[0]) * math.sqrt(1e7), rel=SUM_TOLERANCE)


def test_two_norms_of_mixed_tensors() -> None:
    tensors = [
        torch.tensor(-3.0),
        torch.empty(0),
        torch.randn(5, 4, 3, 2).to(memory_format=torch.channels_last),
        torch.randn(300, 400).T[::2],
        torch.randn(9, dtype=torch.float64),
        torch.randn(3).bfloat16(),
    ]
    expected = torch.stack([tensor.double().norm() for tensor in tensors])
    torch.testing.assert_close(kernels.two_norms(tensors), expected, rtol=SUM_TOLERANCE, atol=0)


@pytest.mark.parametrize("p", [-0.4, 0.0, 0.25, 0.5, 0.9])
def test_penalised_norm_has_the_gradient_of_the_modified_flow(p: float) -> None:
    """d_j N_p = g_j / (g_j^2 + eps)^p, from which the modified flow of the p-update is written."""
    grad = torch.randn(50, dtype=torch.float64, requires_grad=True)
    eps = 1e-3
    (derivative,) = torch.autograd.grad(_differentiable_penalised_norm(grad, p, eps), grad)
    torch.testing.assert_close(derivative, grad.detach() / (grad.detach() ** 2 + eps) ** p)
    value = kernels.penalised_norm(grad.detach(), p=p, eps=eps)
    torch.testing.assert_close(value, _differentiable_penalised_norm(grad, p, eps).detach())


def _differentiable_penalised_norm(grad: torch.Tensor, p: float, eps: float) -> torch.Tensor:
    return ((grad**2 + eps) ** (1 - p)).sum() / (2 * (1 - p))


def test_penalised_norm_at_its_named_exponents() -> None:
    grad, eps = torch.randn(100, dtype=torch.float64), 1e-6
    one_norm = kernels.perturbed_one_norm(grad, eps=eps)
    torch.testing.assert_close(kernels.penalised_norm(grad, p=0.5, eps=eps), one_norm)
    torch.testing.assert_close(one_norm, (grad**2 + eps).sqrt().sum())
    torch.testing.assert_close(kernels.penalised_norm(grad, p=0.0, eps=0.0), grad.square().sum() / 2)
    torch.testing.assert_close(kernels.penalised_norm(grad, p=1.0, eps=eps), (grad**2 + eps).log().sum() / 2)


def test_norms_of_low_precision_and_complex_gradients() -> None:
    grad = torch.randn(64, generator=torch.Generator().manual_seed(0)) * 1e-4
    half = grad.half()
    expected = (half.double() ** 2 + 1e-16).sqrt().sum()
    torch.testing.assert_close(kernels.perturbed_one_norm(half, eps=1e-16), expected, rtol=SUM_TOLERANCE, atol=0)
    z = torch.randn(8, dtype=torch.complex64)
    torch.testing.assert_close(
        kernels.perturbed_one_norm(z, eps=1e-6), kernels.perturbed_one_norm(torch.view_as_real(z), eps=1e-6)
    )
