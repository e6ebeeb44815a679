"""Two things timed in turn, so that whatever else the machine does falls on both."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

Work = Callable[[], object]


@dataclass(frozen=True)
class Pair:
    """Medians in seconds of what was measured (`ours`) and of what it is compared to (`theirs`).

    on_device: of a CUDA device, the same of what it takes itself where the host is ahead of it.
    """

    ours: float
    theirs: float
    rounds: int
    on_device: Pair | None = None

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs


def interleaved(ours: Work, theirs: Work, *, seconds: float, device: torch.device) -> Pair:
    """A B A B for about so many seconds, after two rounds of warming up; at least five rounds."""
    times: tuple[list[float], list[float]] = ([], [])
    on_device: tuple[list[float], list[float]] = ([], [])
    queue = Queue(device) if device.type == "cuda" else None
    for work in (ours, theirs) * 2:
        timed(work, device)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 5:
        for found, work in zip(times, (ours, theirs), strict=True):
            found.append(timed(work, device))
        if queue is not None:
            for found, waited, work in zip(on_device, times, (ours, theirs), strict=True):
                found.append(queue.timed(work, ahead=waited[-1]))
    pair = None if queue is None else _pair(on_device)
    return _pair(times, pair)


def _pair(times: tuple[list[float], list[float]], on_device: Pair | None = None) -> Pair:
    ours, theirs = times
    return Pair(statistics.median(ours), statistics.median(theirs), len(ours), on_device)


class Queue:
    """Work that keeps a CUDA device busy while the host prepares what is timed, as a backward pass does."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._busy = torch.zeros(2**26, device=device)
        self._seconds = min(timed(self._pass, device) for _ in range(10))

    def _pass(self) -> None:
        self._busy.add_(1)

    def timed(self, work: Work, *, ahead: float) -> float:
        """Seconds from the first to the last kernel of `work`, whose host needs less than `ahead`."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize(self._device)
        for _ in range(1 + math.ceil(ahead / self._seconds)):
            self._pass()
        start.record()
        work()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3


def timed(work: Work, device: torch.device) -> float:
    """Seconds until the device is done with it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def bandwidth(device: torch.device, *, numel: int) -> float:
    """Bytes a second that memory gives: the best of ten copies, and of ten sums in place (which all threads share)."""
    source, target = (torch.ones(numel, device=device) for _ in range(2))
    queue = Queue(device) if device.type == "cuda" else None

    def best(work: Work) -> float:
        return min(timed(work, device) if queue is None else queue.timed(work, ahead=1e-3) for _ in range(10))

    copied, added = best(lambda: target.copy_(source)), best(lambda: target.add_(source))
    return max(2 / copied, 3 / added) * numel * source.element_size()
