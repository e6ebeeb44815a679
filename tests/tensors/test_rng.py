"""Random numbers beside a training."""

import random

import numpy as np
import pytest
import torch

from hf_pdyn.tensors.rng import apart


def draw() -> list[float]:
    return [random.random(), float(np.random.rand()), torch.rand(1).item()]


@pytest.mark.parametrize("fails", [False, True])
def test_generators_go_on_as_if_nothing_had_been(fails: bool) -> None:
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    first, second = draw(), draw()
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    assert draw() == first
    inside = []
    try:
        with apart(7):
            inside.append(draw())
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert draw() == second
    with apart(7):
        assert draw() == inside[0]
