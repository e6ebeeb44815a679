import math
from typing import Any

import pytest

from hf_pdyn.sweep.outcome import CONFIRMED, INCONCLUSIVE, NO_EFFECT, OPPOSITE, Identity, Outcome
from papers._claims.options import Options
from papers.adam_bias import flow_order
from papers.adam_bias.flow_order import EXPONENTS, STEPS
from tests.recipes.papers.judging import UNEVEN, judged


def row(
    c: dict[str, Any],
    without: float = 1.0,
    corrected: float = 2.0,
    noise: tuple[float, ...] = (0, 0.05, -0.05),
    **more: Any,
) -> dict[str, Any]:
    """Errors of these orders, at every p."""
    orders = {"without correction": without, "with correction": corrected + noise[c["seed"]]}
    errors = {name: [[steps**-order] * len(EXPONENTS) for steps in STEPS] for name, order in orders.items()}
    return {"errors": errors, "forms_differ_by": 1e-15} | more


@pytest.mark.parametrize(
    ("orders", "expected"),
    [
        ({}, CONFIRMED),
        ({"corrected": 1.0}, OPPOSITE),
        ({"without": 2.0}, OPPOSITE),
        ({"without": 0.0}, NO_EFFECT),
        ({"noise": UNEVEN}, INCONCLUSIVE),
        ({"without": math.nan}, INCONCLUSIVE),
    ],
)
def test_rule(options: Options, orders: dict[str, Any], expected: Outcome) -> None:
    assert judged(flow_order, options, lambda c: row(c, **orders), draw=True).verdict is expected


@pytest.mark.parametrize(("differ", "holds"), [(1e-14, True), (1e-6, False), (math.nan, False)])
def test_forms_of_the_flow(options: Options, differ: float, holds: bool) -> None:
    """They do not decide on the verdict."""
    found = judged(flow_order, options, lambda c: row(c, forms_differ_by=differ))
    part = found.parts["the two forms of the flow"].verdict
    assert isinstance(part, Identity) and part.holds == holds and found.verdict is CONFIRMED


def test_one_p_of_another_order_is_enough(options: Options) -> None:
    def result(c: dict[str, Any]) -> dict[str, Any]:
        found = row(c)
        if c["problem"] == "logistic" and c["batches"] == 2:
            for steps, errors in zip(STEPS, found["errors"]["with correction"], strict=True):
                errors[EXPONENTS.index(0.25)] = steps**-1.0
        return found

    assert judged(flow_order, options, result).verdict is OPPOSITE


@pytest.mark.parametrize("problem", flow_order.PROBLEMS)
@pytest.mark.parametrize("batches", flow_order.BATCHES)
def test_a_short_run_has_both_orders(options: Options, problem: str, batches: int) -> None:
    """A memory of a step and a half, so that few steps are many: measured 0.75 to 1.05 and 1.7 to 2.05."""
    c = next(c for c in flow_order.configurations(options) if c["problem"] == problem and c["batches"] == batches)
    found = flow_order.run({**c, "betas": [0.1, 0.3], "steps": [12, 24], "exponents": [0.0, 0.5]}, options)
    for name, order in flow_order.ORDERS.items():
        coarse, fine = found["errors"][name]
        for one, other in zip(coarse, fine, strict=True):
            assert math.log2(one / other) == pytest.approx(order, abs=0.35)
    assert ("forms_differ_by" in found) == (batches == 1)
    assert found.get("forms_differ_by", 0.0) < flow_order.IDENTITY_TOLERANCE


def test_mini_batches_differ_from_the_full_batch(options: Options) -> None:
    """Else the claim on mini-batches would be that on the full batch."""
    for problem in flow_order.PROBLEMS.values():
        start, (one, other) = problem(0, 2)
        _, (whole,) = problem(0, 1)
        assert float((one(start) + other(start)) / 2) == pytest.approx(float(whole(start)), rel=1e-12)
        assert abs(float(one(start) / other(start)) - 1) > 0.01
