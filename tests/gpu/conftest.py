"""What every test on a CUDA device needs: the device, and arithmetic that can be compared."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


def why_none() -> str | None:
    """Why the tests marked `gpu` cannot run here; None where they can."""
    if not torch.cuda.is_available():
        return "needs a CUDA device"
    if torch.cuda.device_count() > 1:
        return "needs one visible CUDA device (the Trainer would take all for DataParallel): set CUDA_VISIBLE_DEVICES=0"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = why_none()
    for item in items:
        if reason is not None and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    """float32 products in float32, not TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels that add in one order. cuBLAS reads its variable when it starts: scripts/gpu_check sets it, too."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    with sdpa_kernel(SDPBackend.MATH):
        yield
    torch.use_deterministic_algorithms(False)
