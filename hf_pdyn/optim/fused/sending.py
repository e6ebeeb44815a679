"""Small arrays that kernels on a GPU read, sent without waiting for the device."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor

_MANY_TABLES = 64
_PLACES = 64


class Here(NamedTuple):
    """Where a kernel is about to be launched. stream: 0 where there is none; capturing: into a CUDA graph."""

    device: torch.device
    stream: int
    capturing: bool


def here(device: torch.device) -> Here:
    """The current stream of `device`, whose kernels are about to be launched."""
    if device.type != "cuda":
        return Here(device, 0, capturing=False)
    stream = torch.cuda.current_stream(device).cuda_stream
    return Here(device, stream, capturing=torch.cuda.is_current_stream_capturing())


class KnownTables:
    """Tables that are on a device, so that a step does not send what an earlier one has sent; the latest few.

    A table belongs to the stream that it was sent in: another need not wait for that, nor would the allocator wait
    for another before it gives the memory away.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[Hashable, tuple[Tensor, int]] = OrderedDict()
        self._for_graphs: set[Tensor] = set()  # captured CUDA graphs read them and do not keep them alive

    def get(self, key: Hashable, make: Callable[[], Tensor], where: Here) -> Tensor:
        """The table that `make` makes on the CPU, on the device; `key` says what it holds."""
        device = where.device
        known = self._known.pop((key, device), None)
        if where.capturing:
            if known is None:
                raise RuntimeError(
                    "A step captured in a CUDA graph must find its tensors where the step before had them: run a few "
                    "steps first, with the same settings, keep gradients in place (zero_grad(set_to_none=False)), and "
                    "have a learning rate on the device in float32."
                )
            self._for_graphs.add(known[0])
        elif known is None or known[1] != where.stream:
            # The allocator of pinned memory waits for the copy before it gives this memory away.
            table = make().pin_memory().to(device, non_blocking=True) if device.type == "cuda" else make()
            known = table, where.stream
        self._known[key, device] = known
        if len(self._known) > _MANY_TABLES:
            self._known.popitem(last=False)
        return known[0]


class Mailbox:
    """Numbers that kernels of one stream need anew at every step, in float32 at one address on the device.

    They are written to one of a row of places in pinned memory, and copied from there in that stream, the current one.
    A place is written again when its copy was taken half a row of steps ago or more: only a host that is further ahead
    of the device waits.
    """

    def __init__(self, numel: int, device: torch.device) -> None:
        on_cuda = device.type == "cuda"
        places = torch.empty(_PLACES, numel, dtype=torch.float32, device="cpu", pin_memory=on_cuda)
        self._places, self._written = list(places.unbind()), places.numpy()
        self._on_device = torch.empty(numel, dtype=torch.float32, device=device)
        self._values: array[float] | None = None
        self._taken: list[Any] = [torch.cuda.Event() if on_cuda else None for _ in range(2)]  # type: ignore[no-untyped-call]
        self._next = 0

    def send(self, values: array[float]) -> Tensor:
        """The numbers on the device; others, sent later, will stand in their place."""
        if values == self._values:
            return self._on_device
        self._values = values
        half, within = divmod(self._next, _PLACES // 2)
        if within == 0 and self._taken[half] is not None:
            self._taken[half].synchronize()
        self._written[self._next] = values
        self._on_device.copy_(self._places[self._next], non_blocking=True)
        self._next = (self._next + 1) % _PLACES
        if self._next % (_PLACES // 2) == 0 and self._taken[half] is not None:
            self._taken[half].record()
        return self._on_device
