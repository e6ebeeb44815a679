import dataclasses
from typing import Any

import numpy as np
import pytest

from hf_pdyn.sweep.outcome import CONFIRMED, INCONCLUSIVE, NO_EFFECT, OPPOSITE, Identity, Outcome
from papers._claims.options import Options
from papers.mirror_flow import stored_bias
from papers.mirror_flow.stored_bias import EXPONENTS, HALF, HISTORIES, NONE
from tests.recipes.papers.judging import UNEVEN, judged, options_of

AS_THEORY = (0.7, 0.4, 0.2)
SMALL = (0.0, 0.01, -0.01)


def row(
    c: dict[str, Any],
    drops: tuple[float, ...] = AS_THEORY,
    noise: tuple[float, ...] = SMALL,
    apart: dict[str, float] | None = None,
    a: float | None = None,
) -> dict[str, Any]:
    """drops: of the log ratio, by p. apart: of the drop, by history."""
    share = {NONE: 0.0, HALF: 0.5, "throughout": 1.0}.get(c["history"])
    if share is None:
        share = 1 - (apart or {}).get(c["history"], 0.0)
    drop = drops[EXPONENTS.index(c["p"])] * share + (noise[c["seed"]] if share else 0.0)
    end = 8 * np.exp(-drop)
    return {"a": c["a"] if a is None else a, "steps": [25, 50], "ratio": [8.0, end], "distance": [2.0, end / 4]}


@pytest.mark.parametrize(
    ("drops", "noise", "expected"),
    [
        (AS_THEORY, SMALL, CONFIRMED),
        ((0.7, 0.4, -0.3), SMALL, OPPOSITE),
        ((0.7, 0.0, 0.3), SMALL, NO_EFFECT),
        ((0.7, 0.4, 0.2), UNEVEN, INCONCLUSIVE),
    ],
)
def test_rule(options: Options, drops: tuple[float, ...], noise: tuple[float, ...], expected: Outcome) -> None:
    assert judged(stored_bias, options, lambda c: row(c, drops, noise), draw=True).verdict is expected


@pytest.mark.parametrize(
    ("drops", "expected"), [(AS_THEORY, CONFIRMED), ((0.3, 0.3, 0.3), NO_EFFECT), ((0.2, 0.3, 0.6), OPPOSITE)]
)
def test_less_is_stored(options: Options, drops: tuple[float, ...], expected: Outcome) -> None:
    found = judged(stored_bias, options, lambda c: row(c, drops))
    assert found.parts["the larger p, the less is stored"].verdict is expected and found.verdict is CONFIRMED


def test_the_control_does_not_decide(options: Options) -> None:
    found = judged(stored_bias, options, lambda c: row(c, (0.0, 0.4, 0.2)))
    assert found.parts["stored with p = 0 (control)"].verdict is NO_EFFECT and found.verdict is CONFIRMED


@pytest.mark.parametrize(
    ("apart", "expected"),
    [({}, CONFIRMED), ({"early": 0.4}, OPPOSITE), ({"late": -0.4}, OPPOSITE), ({"late": 0.1}, INCONCLUSIVE)],
)
def test_clock(options: Options, apart: dict[str, float], expected: Outcome) -> None:
    found = judged(stored_bias, options, lambda c: row(c, (0.7, 0.7, 0.7), (0.0, 0.01, -0.02), apart))
    assert all(found.parts[f"a_t is the clock with p = {p:g}"].verdict is expected for p in EXPONENTS)
    assert found.verdict is CONFIRMED


@pytest.mark.parametrize(("a", "holds"), [(None, True), (-2.1, False)])
def test_histories_of_another_a_t_are_none(options: Options, a: float | None, holds: bool) -> None:
    found = judged(stored_bias, options, lambda c: row(c, a=a)).parts["histories have one a_t"].verdict
    assert isinstance(found, Identity) and found.holds is holds


@pytest.mark.parametrize("history", [NONE, *HISTORIES, HALF])
def test_a_short_run(options: Options, history: str) -> None:
    """As long as it takes to come to a_t, whatever the history."""
    given = options_of(stored_bias, options)
    c = next(c for c in stored_bias.configurations(given) if c["history"] == history and c["p"] == 0.25)
    found = stored_bias.run({**c, "steps": 40, "inputs": 20}, given)
    assert found["a"] == pytest.approx(c["a"], rel=1e-4)
    assert found["steps"] == list(range(1, 41)) and len(found["ratio"]) == len(found["distance"]) == 40
    assert found["ratio"][0] > 1 and found["distance"][-1] != found["distance"][0]


def test_full_has_more_inputs(options: Options) -> None:
    own = tuple((option.name, option.full) for option in stored_bias.OPTIONS)
    given = dataclasses.replace(options, full=True, own=own)
    assert {c["inputs"] for c in stored_bias.configurations(given)} == {1000}
    assert stored_bias.run({**stored_bias.configurations(given)[0], "steps": 4}, given)["steps"] == [1, 2, 3, 4]
