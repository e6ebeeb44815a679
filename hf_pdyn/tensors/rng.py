"""Drawing random numbers beside a training without moving its own."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def apart(seed: int) -> Iterator[None]:
    """Within: Python's, numpy's and torch's CPU generator start at `seed`. After: they, and CUDA's, are as before."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every device
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
        for i, state in enumerate(on_devices):
            torch.cuda.set_rng_state(state, i)
