import math
from typing import Any

import numpy as np
import pytest
import torch

from hf_pdyn.sweep.outcome import CONFIRMED, INCONCLUSIVE, NO_EFFECT, OPPOSITE, Outcome
from papers._claims.options import Options
from papers.adam_bias import _valley, bilinear_sides
from papers.adam_bias.bilinear_sides import OF_ADAM, OF_FLOW, SWEEPS, strengths
from tests.recipes.papers.judging import UNEVEN, judged


def row(
    c: dict[str, Any], adam: float = -0.05, flow: float = -0.05, noise: tuple[float, ...] = (0, 0.1, -0.1), **of: float
) -> dict[str, Any]:
    """Norms that are so many times the strength of the bias term; of: by sweep, in its first word."""
    sweep = c["sweep"]
    strength = strengths(sweep)[list(SWEEPS[sweep]).index(c["value"])]
    factor = of.get(sweep.split()[0].strip(","), adam) * (1 + noise[c["seed"]])
    return {"of_adam": [factor * strength] * len(OF_ADAM), "of_flow": [flow * strength] * len(OF_FLOW)}


@pytest.mark.parametrize(
    ("factors", "expected"),
    [
        ({}, CONFIRMED),
        ({"adam": 0.05}, OPPOSITE),
        ({"beta": 0.05}, OPPOSITE),
        ({"rho": 0.0}, NO_EFFECT),
        ({"lr": 1e-6}, NO_EFFECT),
        ({"noise": UNEVEN}, INCONCLUSIVE),
        ({"rho": math.nan}, INCONCLUSIVE),
    ],
)
def test_rule(options: Options, factors: dict[str, Any], expected: Outcome) -> None:
    assert judged(bilinear_sides, options, lambda c: row(c, **factors), draw=True).verdict is expected


@pytest.mark.parametrize(
    ("flow", "expected"), [(-0.05, CONFIRMED), (-0.1, OPPOSITE), (-1.0, NO_EFFECT), (-0.0417, INCONCLUSIVE)]
)
def test_size_of_the_modified_flow(options: Options, flow: float, expected: Outcome) -> None:
    """Adam's trend is 0.05 ± 0.005 of three seeds: its interval of 0.0124 is 0.25 of that, or 0.3 of 0.0417."""
    found = judged(bilinear_sides, options, lambda c: row(c, flow=flow, noise=(0, 0.05, -0.05)))
    assert found.parts["the modified flow has the size"].verdict is expected and found.verdict is CONFIRMED


def test_directions_are_those_of_the_bias_term() -> None:
    """By theory norms fall with its strength (lr/2) (C_beta - C_rho)."""
    for sweep, direction in bilinear_sides.DIRECTIONS.items():
        assert (np.sign(np.diff(strengths(sweep))) == -direction).all()
    assert strengths("beta")[0] == pytest.approx(0.001 * (1 - 39))


def test_norms_on_a_straight_path() -> None:
    """Along t1 = t2 - 1 the residual x t1 t2 - y is 0 where t1 (t1 + 1) = 3/2."""
    times = torch.arange(3.0, 0.5, -0.001, dtype=torch.float64)
    path = torch.stack([times, times + 1], -1)
    residuals = [10.0, 2.0, 0.0]
    exact = [math.log(2 * t + 1) for t in (math.sqrt(0.25 + (r + 3) / 2) - 0.5 for r in residuals)]
    np.testing.assert_allclose(_valley.norms(path, residuals), exact, atol=1e-6)
    np.testing.assert_allclose(_valley.norms_of_sign_descent(path[0], residuals), exact, atol=1e-12)


def test_the_norm_is_that_of_the_gradient() -> None:
    theta = _valley.start(3)
    gradient = torch.func.grad(_valley.loss)(theta)
    assert float(gradient.abs().sum()) == pytest.approx(2 * float(_valley.residual(theta)) * float(theta.sum()))


def test_a_coarse_run(options: Options) -> None:
    """Large steps: Adam and its flow come out within a tenth of each other, on the side of larger norms."""
    c = next(c for c in bilinear_sides.configurations(options) if c["sweep"] == "rho" and c["value"] == 0.9)
    found = bilinear_sides.run({**c, "lr": 0.01}, options)
    assert len(found["of_adam"]) == len(OF_ADAM) and len(found["of_flow"]) == len(OF_FLOW)
    assert found["of_adam"][-1] > 1e-3
    assert found["of_adam"][len(OF_FLOW) - 1] == pytest.approx(found["of_flow"][-1], rel=0.2)
