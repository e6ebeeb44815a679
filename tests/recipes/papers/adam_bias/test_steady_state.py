import math
from typing import Any

import numpy as np
import pytest

from hf_pdyn.sweep.outcome import CONFIRMED, INCONCLUSIVE, NO_EFFECT, OPPOSITE, Outcome
from papers._claims.options import Options
from papers.adam_bias import steady_state
from papers.adam_bias.steady_state import POINTS
from tests.recipes.papers.judging import UNEVEN, judged


def row(c: dict[str, Any], steady: float = 5.0, finite: float = 0.1, noise: tuple[float, ...] = (0, 0.1, -0.1)) -> Any:
    """Distances over those of sign descent, which are all 1; the steady-state one is small from three memories on."""
    factor = math.exp(noise[c["seed"]])
    late = POINTS * 3 // steady_state.MEMORIES
    return {
        "distances": {
            "zeroth": [1.0] * POINTS,
            "steady": [steady * factor] * late + [0.5] * (POINTS - late),
            "finite": [finite * factor] * POINTS,
        }
    }


@pytest.mark.parametrize(
    ("distances", "expected"),
    [
        ({}, CONFIRMED),
        ({"steady": 0.5}, OPPOSITE),
        ({"finite": 2.0}, OPPOSITE),
        ({"steady": 1.0, "noise": (0, 0.001, -0.001)}, NO_EFFECT),
        ({"steady": 1.0, "noise": UNEVEN}, INCONCLUSIVE),
        ({"finite": math.nan}, INCONCLUSIVE),
    ],
)
def test_rule(options: Options, distances: dict[str, Any], expected: Outcome) -> None:
    assert judged(steady_state, options, lambda c: row(c, **distances), draw=True).verdict is expected


def test_how_long_the_steady_state_is_worse(options: Options) -> None:
    found = judged(steady_state, options, row)
    assert "bilinear model, rho=0.99: 3.1, " in found.reason  # small at the 31st of 40 points
    ratio = np.array([1.0, -1.0, 1.0, -1.0] + [-1.0] * (POINTS - 4))
    assert steady_state.worse_until(ratio) == pytest.approx(0.4)
    assert steady_state.worse_until(np.full(POINTS, -1.0)) == pytest.approx(0.1)
    assert math.isinf(steady_state.worse_until(np.full(POINTS, 1.0)))


def test_how_long_it_should_be() -> None:
    """Without beta, and for long memories, where the integrals of x/(e^x-1) and of 1-x/(e^x-1) are equal: at 2.82."""
    assert steady_state.expected_until(0.999) == pytest.approx(2.86, abs=0.01)
    x = np.linspace(1e-6, 2.82, 100_001)
    left_out = x / np.expm1(x)
    assert np.mean(left_out) == pytest.approx(np.mean(1 - left_out), rel=1e-2)


@pytest.mark.parametrize("problem", steady_state.PROBLEMS)
def test_a_short_memory(options: Options, problem: str) -> None:
    """A memory of 50 steps; and a coefficient that five of them share, a tenth of it, matters little."""
    c = next(c for c in steady_state.configurations(options) if c["problem"] == problem)
    c |= {"betas": [0.9, 0.98]}
    found = steady_state.run({**c, "sharing": 1}, options)["distances"]
    assert {len(distances) for distances in found.values()} == {POINTS}
    at_one = POINTS // steady_state.MEMORIES - 1
    assert found["finite"][at_one] < found["zeroth"][at_one] / 3 < found["steady"][at_one] / 6
    shared = steady_state.run({**c, "sharing": 5}, options)["distances"]
    changed = np.abs(np.array(shared["finite"]) - found["finite"])
    assert (changed < 0.02 * np.array(found["zeroth"]))[at_one:].all()
