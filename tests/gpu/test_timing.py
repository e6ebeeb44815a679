"""What the benchmarks call a device's own time."""

import time

import pytest
import torch

from benchmarks.timing import interleaved

pytestmark = pytest.mark.gpu


def test_a_host_that_is_ahead_costs_the_device_nothing() -> None:
    """A host of 20 ms before a kernel of microseconds; not a limit of speed, but of what is counted."""
    values = torch.zeros(1024, device="cuda")

    def slow() -> None:
        time.sleep(0.02)
        values.add_(1)

    pair = interleaved(slow, lambda: values.add_(1), seconds=0.0, device=values.device)
    assert pair.ours > 0.02 and pair.theirs < 0.02
    assert pair.on_device is not None and pair.on_device.ours < 0.01
    assert pair.on_device.rounds == pair.rounds == 5


def test_what_is_timed_is_the_device_s_work() -> None:
    values = torch.zeros(2**26, device="cuda")

    def twice_five() -> None:
        for _ in range(10):
            values.add_(1)

    pair = interleaved(twice_five, lambda: values.add_(1), seconds=0.0, device=values.device)
    assert pair.on_device is not None and 5 < pair.on_device.ratio < 20
