import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from hf_pdyn.sweep.outcome import CONFIRMED, INCONCLUSIVE, NO_EFFECT, OPPOSITE, Outcome
from papers._claims.options import Options
from papers.mirror_flow import mirror_maps
from tests.recipes.papers.conftest import PAPERS
from tests.recipes.papers.judging import UNEVEN, judged

STEPS = np.linspace(0, 1, len(mirror_maps.A_VALUES))


def row(c: dict[str, Any], error: float = 1e-12, change: tuple[float, ...] = (0.5, 0.6, 0.7)) -> dict[str, Any]:
    """Errors, and shapes that all change by the factor e^-change as a falls."""
    if c["check"] == "flow":
        printed = None if c["map"] == "quadratic forms" else 1.0
        errors = {"gradient_error": error, "slope_error": error, "end_error": error}
        return {**errors, "printed_error": printed, "a": -0.3, "largest_mu": 1.0}
    shape = np.exp(-change[c["seed"]] * STEPS).tolist()
    return {
        "type": [1 + value for value in shape],
        "minimum": shape,
        "width": None if c["map"] == "m*w" else shape,
        "misjudged": 0.0,
        "contracting": 1.0,
        "printed_minimum": [2 * value for value in shape],
        "balanced_error": 0.5,
    }


@pytest.mark.parametrize(("error", "holds"), [(1e-12, True), (1e-7, False), (float("nan"), False)])
def test_identities_hold_up_to_their_tolerance(options: Options, error: float, holds: bool) -> None:
    found = judged(mirror_maps, options, lambda c: row(c, error), draw=True)
    held = {name: part.verdict.holds for name, part in found.parts.items() if not isinstance(part.verdict, Outcome)}
    assert found.verdict.holds is holds
    assert held["dR_a/da = -h (ours)"] is holds
    # Its tolerance is larger.
    assert held["Theorem 3.2: the flow's end is the solution where R_a is least"] is (error < 1e-6)
    assert not any(held[name] for name in (*mirror_maps.PRINTED, "the minimum of Eq. 8, m*w"))
    assert held["where R_a is contracting"]


@pytest.mark.parametrize(
    ("change", "falling", "rising"),
    [
        ((0.5, 0.6, 0.7), CONFIRMED, OPPOSITE),
        ((-0.5, -0.6, -0.7), OPPOSITE, CONFIRMED),
        ((0.001, -0.001, 0.002), NO_EFFECT, NO_EFFECT),
        (UNEVEN, INCONCLUSIVE, INCONCLUSIVE),
    ],
)
def test_effects_by_their_direction(
    options: Options, change: tuple[float, ...], falling: Outcome, rising: Outcome
) -> None:
    found = judged(mirror_maps, options, lambda c: row(c, change=change))
    for name, (_, _, direction) in mirror_maps.EFFECTS.items():
        assert found.parts[name].verdict is (falling if direction < 0 else rising), name


def test_a_point_on_the_wrong_side_is_no_identity(options: Options) -> None:
    def result(c: dict[str, Any]) -> dict[str, Any]:
        return row(c) | ({"misjudged": 0.01} if c["map"] == "log u-log v" and c["seed"] == 2 else {})

    assert not judged(mirror_maps, options, result).parts["where R_a is contracting"].verdict.holds


@pytest.mark.parametrize("name", [name for name in mirror_maps.FLOWS if name != "u^14-v^14"])
def test_a_flow(options: Options, name: str) -> None:
    """The printed form is right for one map, and wrong by more than a tenth for the others."""
    found = mirror_maps.run({"check": "flow", "map": name, "end": 1.0, "seed": 0}, options)
    assert max(found["gradient_error"], found["slope_error"]) < 1e-9
    assert found["a"] < -0.3
    if name == "quadratic forms":
        assert found["printed_error"] is None
    else:
        assert (found["printed_error"] < 1e-9) if name == "u^2-v^2, half" else (found["printed_error"] > 0.1)


def test_a_flow_that_is_left_alone_ends_where_the_potential_is_least(options: Options) -> None:
    errors = [
        mirror_maps.run({"check": "flow", "map": "u^4-v^4", "end": end, "seed": 0}, options)["end_error"]
        for end in (1.0, 100.0)
    ]
    assert errors[0] > 1e-4 and errors[1] < 1e-9


@pytest.mark.parametrize("name", mirror_maps.SHAPES)
def test_a_shape(options: Options, name: str) -> None:
    c = {"check": "shape", "map": name, "a": [0.0, -0.3], "seed": 1}
    found = mirror_maps.run(c, options)
    assert found["misjudged"] == 0
    types = {"m*w": (-0.5, -0.1), "u^4-v^4": (-0.9, -0.1), "log u-log v": (-1e-9, 1e-9)}
    low, high = types[name]
    assert low < found["type"][1] - found["type"][0] < high
    if name == "m*w":
        assert found["printed_minimum"][0] == pytest.approx(2 * found["minimum"][0])
    if name == "log u-log v":
        assert found["balanced_error"] == pytest.approx(0.5) and found["contracting"] < 1


@pytest.mark.slow
def test_the_file_is_a_program() -> None:
    path = PAPERS / "mirror_flow" / "mirror_maps.py"
    done = subprocess.run([sys.executable, path, "--help"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.startswith("usage: claim.py mirror_maps"), done.stderr
