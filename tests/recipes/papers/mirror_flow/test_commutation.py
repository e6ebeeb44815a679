import math
from typing import Any

import pytest

from hf_pdyn.sweep.outcome import CONFIRMED, INCONCLUSIVE, NO_EFFECT, OPPOSITE, Outcome
from papers._claims.options import Options
from papers.mirror_flow import commutation
from tests.recipes.papers.judging import UNEVEN, judged

THRESHOLD = "k factors: x is held below a threshold of G / alpha (ours)"


def row(c: dict[str, Any], ratios: tuple[float, ...] = (1.0, 1.001, 0.999)) -> dict[str, Any]:
    """As theory has it, but for thresholds of `ratios` times theirs."""
    match c["check"]:
        case "symbols":
            return {"commutes": commutation.PAIRS[c["pair"]].commutes}
        case "order":
            return {"apart": 1e-13 if commutation.PAIRS[c["pair"]].commutes else 0.1}
        case "depth":
            return {"error": 1e-12, "beyond": 0.0, "largest_share": 0.7}
        case "range":
            return {"scale": 1.0, "found": 3.0 * ratios[c["seed"]], "expected": 3.0}
    return {"holds": True}


def test_what_is_as_theory_has_it(options: Options) -> None:
    found = judged(commutation, options, row, draw=True)
    assert found.verdict.holds
    for name, part in found.parts.items():
        assert part.verdict is CONFIRMED if name == THRESHOLD else part.verdict.holds, name


@pytest.mark.parametrize(
    ("where", "wrong"),
    [
        ({"check": "symbols", "pair": "m w, squares"}, {"commutes": False}),
        ({"check": "order", "pair": "m w, squares", "seed": 1}, {"apart": 1e-3}),
        ({"check": "order", "pair": "x, squares", "seed": 2}, {"apart": 1e-9}),
    ],
)
def test_one_pair_that_is_not_as_the_paper_says(options: Options, where: dict[str, Any], wrong: dict[str, Any]) -> None:
    found = judged(commutation, options, lambda c: wrong if where.items() <= c.items() else row(c))
    assert not found.verdict.holds and found.verdict.largest_error == pytest.approx(1 / len(commutation.PAIRS))


@pytest.mark.parametrize(
    ("check", "wrong", "part"),
    [
        ("separable", {"holds": False}, "Corollary 3.1: h = c g + d (the paper: c g)"),
        ("linear", {"holds": False}, "Corollary B.1: with x, h is linear"),
        ("decay of a product", {"holds": False}, "Theorem B.3: the bracket of a product"),
        (
            "depth",
            {"error": 1e-3, "beyond": 0.0, "largest_share": 0.7},
            "k factors: x = e^(2ka) xhat(muhat) (ours)",
        ),
        (
            "depth",
            {"error": 1e-12, "beyond": 0.1, "largest_share": 1.2},
            "k factors: |muhat| <= G / (2(k-2) alpha) (ours)",
        ),
    ],
)
def test_each_identity_fails_by_its_own_rows(options: Options, check: str, wrong: dict[str, Any], part: str) -> None:
    found = judged(commutation, options, lambda c: wrong if c["check"] == check else row(c))
    failed = [name for name, one in found.parts.items() if name != THRESHOLD and not one.verdict.holds]
    assert failed == [part] and found.verdict.holds


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ((1.0, 1.001, 0.999), CONFIRMED),
        ((1.5, 1.501, 1.499), OPPOSITE),
        ((0.001, 0.002, 0.001), NO_EFFECT),
        (UNEVEN, INCONCLUSIVE),
    ],
)
def test_thresholds(options: Options, ratios: tuple[float, ...], expected: Outcome) -> None:
    assert judged(commutation, options, lambda c: row(c, ratios)).parts[THRESHOLD].verdict is expected


@pytest.mark.parametrize("pair", ["u^4-v^4, fourth powers", "x, squares", "K'Q of two entries, squares"])
def test_a_pair(options: Options, pair: str) -> None:
    commutes = commutation.PAIRS[pair].commutes
    assert commutation.run({"check": "symbols", "pair": pair, "seed": 0}, options) == {"commutes": commutes}
    apart = commutation.run({"check": "order", "pair": pair, "seed": 0}, options)["apart"]
    assert apart < 1e-11 if commutes else apart > 1e-3


def test_a_law_that_a_wrong_h_would_break(options: Options) -> None:
    assert commutation.run({"check": "separable", "g": "log(u)", "seed": 0}, options) == {"holds": True}
    assert commutation.run({"check": "linear", "n": 2, "seed": 0}, options) == {"holds": True}
    assert commutation.run({"check": "decay of a product", "k": 3, "seed": 0}, options) == {"holds": True}


def test_a_deep_flow(options: Options) -> None:
    found = commutation.run({"check": "depth", "k": 3, "alpha": 0.5, "seed": 0}, options)
    assert found["error"] < 1e-10 and found["beyond"] == 0 and 0.1 < found["largest_share"] < 1


@pytest.mark.parametrize("k", [3, 4])
def test_a_threshold_is_found_where_theory_has_it(options: Options, k: int) -> None:
    found = commutation.run({"check": "range", "k": k, "alpha": 0.5, "seed": 0}, options)
    assert found["found"] == pytest.approx(found["expected"], rel=2e-3)


def test_thresholds_in_closed_form() -> None:
    """2 is the limit for two factors, whose growth is G - 2 alpha."""
    assert commutation.threshold(3) == pytest.approx(math.pi)
    assert commutation.threshold(4, scale=2.0) == pytest.approx(1.0)
    assert commutation.threshold(2.0001) == pytest.approx(commutation.threshold(2), rel=1e-3)
