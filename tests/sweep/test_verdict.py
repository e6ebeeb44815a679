"""What rows of a sweep come to, on made-up rows."""

import json

import pytest

from hf_pdyn.sweep.plan import Plan, configuration
from hf_pdyn.sweep.rows import Row
from hf_pdyn.sweep.verdict import FEWEST_SEEDS, arms, as_json, sentences

NOISE = (0.0, 0.01, -0.01, 0.02, -0.02, 0.03)


def rows(plan: Plan, effects: dict[tuple[str, float], float | None]) -> list[Row]:
    """Losses of 2 and noise, alike for all p of a seed but for a thousandth, with an effect of (match, p)."""
    found = []
    for of in plan.compared(dict.fromkeys(plan.exponents, plan.learning_rate)):
        effect = effects.get((of["match"], of["p"]), 0.0)
        small = 0.001 * ((of["seed"] * 7 + int(of["p"] * 100)) % 3 - 1)
        loss = None if effect is None and of["seed"] == 2 else 2 + NOISE[of["seed"] - 1] + (effect or 0.0) + small
        found.append({"configuration": of, "result": {"eval_loss": loss}})
    return found


def verdict(effects: dict[tuple[str, float], float | None], *match: str) -> str:
    plan = Plan((0.25, 0.5), 4, match, 1e-3)  # type: ignore[arg-type]
    (found,) = sentences(plan, arms(plan, rows(plan, effects), "eval_loss"), "eval_loss")
    return found


@pytest.mark.parametrize(
    ("effects", "match", "said"),
    [
        ({("update_scale", 0.25): 0.3}, ("update_scale",), "p's own effect: +0.3"),
        ({("update_scale", 0.25): -0.3}, ("update_scale", "none"), "p's own effect: -0.3"),
        ({}, ("update_scale",), "none visible"),
        ({}, ("update_scale", "learning_rate", "none"), "none visible"),
        ({("none", 0.25): 0.3}, ("update_scale", "none"), "the learning rate's effect: +0.3"),
        ({("none", 0.25): 0.3}, ("none",), "p's effect or its learning rate's"),
        ({("update_scale", 0.25): None}, ("update_scale",), "not known, a run diverged"),
        ({("none", 0.25): 0.3, ("update_scale", 0.25): None}, ("update_scale", "none"), "p's effect or its learning"),
    ],
)
def test_verdicts(effects: dict[tuple[str, float], float | None], match: tuple[str, ...], said: str) -> None:
    assert f"p = 0.25 against 0.5, eval_loss: {said}" in verdict(effects, *match)


def test_seeds_that_change_nothing_are_no_evidence() -> None:
    """As of a script that sets its own seed: a difference of a thousand runs that are one run."""
    plan = Plan((0.25, 0.5), 4, ("update_scale", "none"), 1e-3)
    found = [
        {"configuration": of, "result": {"eval_loss": 2.0 + (0.3 if of["p"] == 0.25 else 0.0)}}
        for of in plan.compared(dict.fromkeys(plan.exponents, plan.learning_rate))
    ]
    judged = arms(plan, found, "eval_loss")
    (said,) = sentences(plan, judged, "eval_loss")
    assert "not known, every seed gave the same value (-0.3 with every seed, " in said.replace("+0.3", "-0.3")
    assert "as where a script does not follow --seed." in said
    assert {arm["interval"] for arm in as_json(plan, judged, "eval_loss")["arms"]} == {None}


@pytest.mark.parametrize(("seeds", "cautious"), [(4, True), (FEWEST_SEEDS, False)])
def test_few_seeds_carry_no_claim(seeds: int, cautious: bool) -> None:
    plan = Plan((0.25, 0.5), seeds, ("update_scale",), 1e-3)
    for effect, claims in ((0.3, True), (0.0, False)):
        (said,) = sentences(plan, arms(plan, rows(plan, {("update_scale", 0.25): effect}), "eval_loss"), "eval_loss")
        assert (f"of {seeds} seeds: take 6 before you say so" in said) == (cautious and claims)


def test_the_file_is_json_with_every_arm() -> None:
    plan = Plan((0.25, 0.4, 0.5), 4, ("update_scale", "none"), 1e-3)
    found = arms(plan, rows(plan, {("none", 0.25): None}), "eval_loss")
    written = json.loads(json.dumps(as_json(plan, found, "eval_loss")))
    assert len(written["arms"]) == 6 and len(written["verdicts"]) == 2
    assert configuration("none", 0.5, 1e-3, 1)["p"] == written["reference"]
