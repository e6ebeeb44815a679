"""Every claim's rule, on results of which it is known what they say."""

import dataclasses
import itertools
import math
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hf_pdyn.sweep.outcome import CONFIRMED, INCONCLUSIVE, NO_EFFECT, OPPOSITE, Identity, Outcome
from papers._claims.claim import Claim
from papers._claims.options import Options
from papers.allocation import (
    path_allocation,
    residual_update,
    sparse_gain,
)
from tests.recipes.papers.conftest import rows_of

Configuration = dict[str, Any]
Result = Callable[[Configuration], dict[str, Any]]


def noise(configuration: Configuration) -> float:
    """Small, different from run to run, the same for every call."""
    digits = zlib.crc32(repr(sorted(configuration.items())).encode())
    return 1 + 0.01 * math.sin(digits)


def shares(slope: float) -> Result:
    return lambda c: {"share": (0.4 + slope * c["p"]) * noise(c), "first_share": 0.5}


def slopes(factor: float) -> Result:
    return slopes_of_seeds(factor, factor, factor)


def slopes_of_seeds(*factors: float) -> Result:
    def result(c: Configuration) -> dict[str, Any]:
        slope = -c["p"] * factors[c["seed"]] * noise(c)
        return {
            "slope": slope,
            "slope_error": 0.01,
            "log_gain": np.linspace(-5 * slope, 0, sparse_gain.LEVELS).tolist(),
        }

    return result


CASES: list[tuple[Any, Result, Outcome | Identity]] = [
    (residual_update, lambda c: {"largest_error": 1e-15, "weight_share": 0.5}, Identity(1e-15, 1e-12)),
    (
        residual_update,
        lambda c: {"largest_error": 1e-9 if c["p"] == 0.3 else 1e-15, "weight_share": 0.5},
        Identity(1e-9, 1e-12),
    ),
    (path_allocation, shares(+0.5), CONFIRMED),
    (path_allocation, shares(-0.5), OPPOSITE),
    (path_allocation, shares(0.0), NO_EFFECT),
    (sparse_gain, slopes(1.0), CONFIRMED),
    (sparse_gain, slopes(1.2), OPPOSITE),
    (sparse_gain, slopes(0.0), NO_EFFECT),
    (sparse_gain, slopes_of_seeds(0.8, 1.0, 1.3), INCONCLUSIVE),
]


@pytest.mark.parametrize(
    ("module", "result", "expected"), CASES, ids=[f"{c[0].CLAIM.name}-{i}" for i, c in enumerate(CASES)]
)
def test_rule(options: Options, module: Any, result: Result, expected: Outcome | Identity) -> None:
    claim: Claim = module.CLAIM
    given = dataclasses.replace(options, claim=claim.name)
    rows = rows_of(list(claim.configurations(given)), result)
    found = claim.judged(rows, given)
    assert found.verdict == expected, found
    assert found.claim and found.paper and found.rule and found.measured and found.seeds == 3
    claim.draw(rows, given)
    assert (given.directory / "figure.png").stat().st_size > 10_000


def test_claims_have_numbers(options: Options) -> None:
    first = {module: result for module, result, _ in reversed(CASES)}
    judged = []
    for module, result in first.items():
        given = dataclasses.replace(options, claim=module.CLAIM.name)
        judged.append(module.CLAIM.judge(rows_of(list(module.CLAIM.configurations(given)), result), given))
    assert sorted(found.number for found in judged) == [1, 2, 3]
    assert len({found.claim for found in judged}) == 3


@pytest.mark.parametrize("full", [False, True])
def test_configurations_differ(options: Options, full: bool) -> None:
    given = dataclasses.replace(options, full=full)
    for module in {case[0] for case in CASES}:
        found = [repr(sorted(c.items())) for c in module.CLAIM.configurations(given)]
        assert len(set(found)) == len(found), module.CLAIM.name
        for one, other in itertools.pairwise(module.CLAIM.configurations(given)):
            assert one.keys() >= {"seed"} and other.keys() >= {"seed"}
