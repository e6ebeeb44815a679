"""Two things timed in turn, so that whatever else the machine does falls on both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

Work = Callable[[], object]


@dataclass(frozen=True)
class Pair:
    """Medians in seconds of what was measured (`ours`) and of what it is compared to (`theirs`)."""

    ours: float
    theirs: float
    rounds: int

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs


def interleaved(ours: Work, theirs: Work, *, seconds: float, device: torch.device) -> Pair:
    """A B A B for about so many seconds, after two rounds of warming up; at least five rounds."""
    times: tuple[list[float], list[float]] = ([], [])
    for work in (ours, theirs) * 2:
        timed(work, device)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 5:
        for found, work in zip(times, (ours, theirs), strict=True):
            found.append(timed(work, device))
    return Pair(statistics.median(times[0]), statistics.median(times[1]), len(times[0]))


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
    copied = min(timed(lambda: target.copy_(source), device) for _ in range(10))
    added = min(timed(lambda: target.add_(source), device) for _ in range(10))
    return max(2 / copied, 3 / added) * numel * source.element_size()
