"""Kernels are bound once for each kind of arguments, and launched as they were compiled after that."""

from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="the fused step for GPUs is written in Triton")

import triton

from hf_pdyn.optim.fused import triton_launch
from hf_pdyn.optim.fused.triton_launch import Launches

TENSOR = torch.zeros(8)
UNALIGNED = torch.zeros(9)[1:]


class Kernel:
    """Stands for a kernel of Triton and for what it compiles; `calls` are their launches."""

    def __init__(self, *, compiles: bool = True) -> None:
        self.compiles = compiles
        self.calls: list[Any] = []

    def __getitem__(self, grid: Any) -> Any:
        def launch(*tensors: Any, **given: Any) -> Any:
            self.calls.append(("bound", grid, len(tensors), given))
            return self if self.compiles else None

        def launch_again(*arguments: Any, **given: Any) -> Any:
            if given:
                return launch(*arguments, **given)
            return self.calls.append(("direct", grid, arguments))

        return launch_again


def launched(kernel: Kernel, *kinds: tuple[tuple[Any, ...], dict[str, Any]]) -> list[str]:
    launches = Launches()
    for tensors, constants in kinds:
        launches(kernel, (3, 1, 1), tensors, constants, num_warps=4)
    return [call[0] for call in kernel.calls]


PLAIN: tuple[Any, Any] = ((TENSOR, None), {"apply": True})


@pytest.fixture(autouse=True)
def _triton_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "__version__", "3.6.0")
    triton_launch._takes_all_arguments.cache_clear()


def test_a_second_launch_takes_tensors_and_constants_in_the_order_of_the_parameters() -> None:
    kernel = Kernel()
    assert launched(kernel, PLAIN, PLAIN, PLAIN) == ["bound", "direct", "direct"]
    assert kernel.calls[0] == ("bound", (3, 1, 1), 2, {"apply": True, "num_warps": 4})
    assert kernel.calls[1] == ("direct", (3, 1, 1), (TENSOR, None, True))


@pytest.mark.parametrize(
    "other",
    [((UNALIGNED, None), {"apply": True}), ((TENSOR, TENSOR), {"apply": True}), ((TENSOR, None), {"apply": False})],
    ids=["unaligned", "another argument given", "another constant"],
)
def test_what_is_compiled_for_other_arguments_is_bound_anew(other: tuple[Any, Any]) -> None:
    assert launched(Kernel(), PLAIN, other, PLAIN, other) == ["bound", "bound", "direct", "direct"]


def test_the_interpreter_compiles_nothing() -> None:
    assert launched(Kernel(compiles=False), PLAIN, PLAIN) == ["bound", "bound"]


@pytest.mark.parametrize(("version", "second"), [("3.2.0", "bound"), ("3.3.0", "direct"), ("4.0.0+git1", "direct")])
def test_triton_before_3_3_wants_other_arguments(monkeypatch: pytest.MonkeyPatch, version: str, second: str) -> None:
    monkeypatch.setattr(triton, "__version__", version)
    assert launched(Kernel(), PLAIN, PLAIN) == ["bound", second]
