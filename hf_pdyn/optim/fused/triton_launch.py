"""Launches of Triton's kernels: the one place that knows how its versions want to be called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from torch import Tensor


class Launches:
    """Launches of one kernel whose tensors are of one dtype each, and on one device.

    Triton binds and hashes every argument, and looks at every global name of the kernel, at every launch: 0.1 ms of the
    host for the step's (Triton 3.6). A second launch of a kind takes directly what the first has compiled, as Triton's
    tutorials do. Triton before 3.3 wants other arguments then, so there every launch is a first one.
    """

    def __init__(self) -> None:
        self._compiled: dict[tuple[Any, ...], Any] = {}

    def __call__(
        self,
        kernel: Any,
        grid: tuple[int, int, int],
        tensors: Sequence[Tensor | None],
        constants: Mapping[str, Any],
        **options: Any,
    ) -> None:
        """Launch `kernel` with its arguments in the order of its parameters: tensors, then constants.

        options: such as num_warps; the same for the same constants.
        """
        key = (*constants.values(), *map(_kind, tensors))
        compiled = self._compiled.get(key)
        if compiled is not None:
            compiled[grid](*tensors, *constants.values())
            return
        compiled = kernel[grid](*tensors, **constants, **options)
        if compiled is not None and _takes_all_arguments():  # the interpreter returns nothing
            self._compiled[key] = compiled


def _kind(tensor: Tensor | None) -> Any:
    """What Triton compiles another kernel for."""
    return None if tensor is None else tensor.data_ptr() % 16 == 0


@cache
def _takes_all_arguments() -> bool:
    import triton

    major, minor = triton.__version__.split(".")[:2]
    return (int(major), int(minor)) >= (3, 3)
