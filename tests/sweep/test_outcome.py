import math

import pytest

from hf_pdyn.sweep.outcome import CONFIRMED, INCONCLUSIVE, NO_EFFECT, OPPOSITE, Identity, Outcome, all_of


def test_there_are_four_outcomes() -> None:
    assert [str(outcome) for outcome in Outcome] == ["confirmed", "opposite", "no effect", "inconclusive"]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([CONFIRMED, CONFIRMED], CONFIRMED),
        ([CONFIRMED, INCONCLUSIVE], INCONCLUSIVE),
        ([INCONCLUSIVE, NO_EFFECT, CONFIRMED], NO_EFFECT),
        ([NO_EFFECT, CONFIRMED, OPPOSITE, INCONCLUSIVE], OPPOSITE),
    ],
)
def test_a_claim_of_several_parts(parts: list[Outcome], expected: Outcome) -> None:
    assert all_of(parts) is expected


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (7.31e-16, "identity (largest error 7.3e-16, tolerance 1e-12)"),
        (1e-9, "no identity (largest error 1.0e-09, tolerance 1e-12)"),
        (math.nan, "no identity (largest error nan, tolerance 1e-12)"),
    ],
)
def test_an_identity_says_how_well_it_holds(error: float, told: str) -> None:
    assert str(Identity(error, 1e-12)) == told
