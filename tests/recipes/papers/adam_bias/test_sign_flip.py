import math
from typing import Any

import numpy as np
import pytest

from hf_pdyn.sweep.outcome import CONFIRMED, INCONCLUSIVE, NO_EFFECT, OPPOSITE, Outcome
from hf_pdyn.theory.modified_flow import neutral_exponent
from papers._claims.options import Options
from papers.adam_bias import sign_flip
from papers.adam_bias.sign_flip import FACTORS
from tests.recipes.papers.judging import UNEVEN, judged


def row(
    c: dict[str, Any], slope: float = 1e-2, at: float = 0.0, noise: tuple[float, ...] = (0, 0.001, -0.001)
) -> dict[str, Any]:
    """A change by the learning rate that is zero at p* + at, and one by its square, which should not matter."""
    first = slope * (c["p"] - float(neutral_exponent(tuple(c["betas"]))) - at - noise[c["seed"]])
    return {"log_norm": [first * factor + 0.3 * factor**2 for factor in FACTORS]}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, CONFIRMED),
        ({"at": 0.015}, CONFIRMED),
        ({"slope": -1e-2}, OPPOSITE),
        ({"at": 0.04}, OPPOSITE),
        ({"at": 0.02}, INCONCLUSIVE),
        ({"slope": 1e-6}, NO_EFFECT),
        ({"noise": UNEVEN}, INCONCLUSIVE),
        ({"slope": math.nan}, INCONCLUSIVE),
    ],
)
def test_rule(options: Options, changes: dict[str, Any], expected: Outcome) -> None:
    assert judged(sign_flip, options, lambda c: row(c, **changes), draw=True).verdict is expected


def test_the_change_is_of_first_order(options: Options) -> None:
    """lr doubles: the learning rate's own part, slope times p - p*, without that of its square."""
    rows = [{"configuration": c, "result": row(c, noise=(0, 0, 0))} for c in sign_flip.configurations(options)]
    for problem, betas in sign_flip.CASES:
        found = sign_flip.changes(rows, problem, betas)
        assert found.shape == (5, 3)
        np.testing.assert_allclose(found, 1e-2 * np.array(sign_flip.OFFSETS)[:, None].repeat(3, 1), atol=1e-6)


def test_crossings() -> None:
    assert sign_flip.crossing([0, 1, 2], np.array([-1.0, -1.0, 3.0])) == 1.25
    assert sign_flip.crossing([0, 1], np.array([0.0, 1.0])) == 0.0
    assert math.isnan(sign_flip.crossing([0, 1, 2], np.array([1.0, 2.0, 3.0])))
    assert math.isnan(sign_flip.crossing([0, 1, 2], np.array([3.0, 1.0, -1.0])))


def test_a_short_run_of_the_bilinear_model(options: Options) -> None:
    """RMSProp with a short memory, a tenth below p* and a tenth above."""
    below, above = (
        next(c for c in sign_flip.configurations(options) if c["betas"] == [0.0, 0.8] and c["p"] == p)
        for p in (sign_flip.exponents((0.0, 0.8))[0], sign_flip.exponents((0.0, 0.8))[-1])
    )
    changes = [np.diff(sign_flip.run({**c, "lr": 0.01}, options)["log_norm"])[0] for c in (below, above)]
    assert changes[0] < 0 < changes[1]


def test_a_short_run_of_the_network(options: Options) -> None:
    """At lr, 2 lr and 4 lr it is as far at the same times, up to a few percent of these steps."""
    c = next(c for c in sign_flip.configurations(options) if c["problem"] == sign_flip.NETWORK)
    found = sign_flip.run({**c, "steps": 40, "moments": [0.5, 1.0]}, options)["log_norm"]
    assert len(found) == 3 and np.ptp(found) < 0.05
    once = sign_flip.run({**c, "steps": 40, "moments": [0.0]}, options)["log_norm"]
    assert once == [once[0]] * 3 and once[0] != pytest.approx(found[0], abs=1e-4)
