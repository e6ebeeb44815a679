"""The update and its norms on a CUDA device, in numbers."""

import math
from typing import Any

import pytest
import torch

from hf_pdyn.tensors import norms
from tests.optim.test_padam import VARIANTS, assert_follows_the_scalar_reference
from tests.tensors.test_norms import SUM_TOLERANCE

pytestmark = pytest.mark.gpu

PATHS: dict[str, dict[str, Any]] = {
    "fused": {"fused": True},
    "foreach": {"fused": False, "foreach": True},
    "tensor": {"fused": False, "foreach": False},
}
LEARNING_RATES = {
    "on the CPU": lambda: torch.tensor(0.01),
    "on the device": lambda: torch.tensor(0.01, device="cuda"),
    "one element on the device": lambda: torch.tensor([0.01], device="cuda"),
}


@pytest.mark.parametrize("p", [-0.25, 0.0, 0.37, 0.5, 1.0])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("path", PATHS)
def test_follows_the_scalar_reference(p: float, variant: str, dtype: torch.dtype, path: str) -> None:
    assert_follows_the_scalar_reference(p, variant, dtype, "cuda", **PATHS[path])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("rate", LEARNING_RATES)
@pytest.mark.parametrize("variant", ["decoupled decay", "amsgrad", "matched to adam"])
def test_follows_it_with_a_tensor_lr(variant: str, rate: str, path: str) -> None:
    lr = LEARNING_RATES[rate]()
    assert_follows_the_scalar_reference(0.25, variant, torch.float32, "cuda", lr=lr, **PATHS[path])


@pytest.mark.parametrize("variant", VARIANTS)
def test_follows_it_with_step_counts_on_the_device(variant: str) -> None:
    for path in PATHS.values():
        assert_follows_the_scalar_reference(0.25, variant, torch.float32, "cuda", capturable=True, **path)


@pytest.mark.parametrize("numel", [1, 7, 4096, 65_537, 10_000_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_two_norms_equal_float64(numel: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(n, generator=generator).to("cuda", dtype) for n in (numel, 100)]
    expected = torch.stack([tensor.double().norm() for tensor in tensors])
    found = norms.two_norms(tensors)
    assert found.is_cuda
    torch.testing.assert_close(found, expected, rtol=SUM_TOLERANCE, atol=0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_holds_nonfinite_sees_one_element_anywhere(dtype: torch.dtype, value: float) -> None:
    """A maximum must propagate NaN within a thread, between those of a block, and between blocks."""
    device = torch.device("cuda", 0)
    largest = torch.finfo(dtype).max
    tensors = [torch.full((n,), largest, dtype=dtype, device=device) for n in (1, 300, 200_000)]
    tensors.append(torch.ones(5, device=device))  # of another dtype in two of three cases
    tensors.append(torch.empty(0, dtype=dtype, device=device))
    assert norms.holds_nonfinite(tensors, device).item() == 0.0  # whose sum of squares overflows
    for tensor in tensors:
        for place in {0, tensor.numel() // 2, tensor.numel() - 1} if tensor.numel() else ():
            kept = tensor[place].clone()
            tensor[place] = value
            assert norms.holds_nonfinite(tensors, device).item() == 1.0
            tensor[place] = kept
    assert norms.holds_nonfinite(tensors, device).item() == 0.0
