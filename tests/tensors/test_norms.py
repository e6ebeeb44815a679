import math

import pytest
import torch

from hf_pdyn.tensors import norms

# float32 has 24 bits; sums of squares in rows of 512 keep the relative error below about 1e-6.
SUM_TOLERANCE = 1e-6


@pytest.mark.parametrize("numel", [1, 7, 4096, 65_536, 65_537, 3_000_001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_two_norms_equal_float64(numel: int, dtype: torch.dtype) -> None:
    tensors = [torch.randn(numel, generator=torch.Generator().manual_seed(i)).to(dtype) for i in range(2)]
    expected = torch.stack([tensor.double().norm() for tensor in tensors])
    found = norms.two_norms(tensors)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=SUM_TOLERANCE, atol=0)


def test_two_norms_keep_digits_where_float32_sums_lose_them() -> None:
    """torch 2.13's own float32 norm is 0.8 % off here on an AVX-512 CPU."""
    tensor = torch.full((10_000_000,), 0.1)
    assert norms.two_norms([tensor])[0].item() == pytest.approx(float(tensor[0]) * math.sqrt(1e7), rel=SUM_TOLERANCE)


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
    torch.testing.assert_close(norms.two_norms(tensors), expected, rtol=SUM_TOLERANCE, atol=0)
