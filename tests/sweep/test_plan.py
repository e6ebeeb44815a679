"""Which runs a sweep has."""

from typing import Any

import pytest

from hf_pdyn.sweep.plan import GRID, Plan, best, configuration, greater_is_better, name, optim_args, option

PLAN = Plan((0.25, 0.4, 0.5), 3, ("update_scale", "none"), 1e-3)


def test_every_p_and_seed_of_every_way_of_matching() -> None:
    found = PLAN.compared({})
    assert len(found) == 2 * 3 * 3
    assert {(of["match"], of["p"], of["seed"]) for of in found} == {
        (match, p, seed) for match in ("update_scale", "none") for p in (0.25, 0.4, 0.5) for seed in (1, 2, 3)
    }
    assert {of["learning_rate"] for of in found} == {1e-3}
    assert len({name(of) for of in found}) == len(found)


def test_learning_rates_are_tried_around_those_of_adam_s_size() -> None:
    plan = Plan((0.25, 0.5), 2, ("learning_rate",), 1e-3)
    found = plan.tuning({0.25: 30.0, 0.5: 1.0})
    assert [of["learning_rate"] for of in found] == pytest.approx(
        [rate * step for rate in (0.03, 1e-3) for step in GRID], rel=1e-3
    )
    assert {of["seed"] for of in found} == {0}
    assert PLAN.tuning({}) == []


def test_tuned_learning_rates_are_compared() -> None:
    plan = Plan((0.25, 0.5), 2, ("learning_rate", "none"), 1e-3)
    rates = {(of["match"], of["p"]): of["learning_rate"] for of in plan.compared({0.25: 0.01, 0.5: 0.002})}
    assert rates == {("learning_rate", 0.25): 0.01, ("learning_rate", 0.5): 0.002} | {
        ("none", p): 1e-3 for p in (0.25, 0.5)
    }


@pytest.mark.parametrize(("exponents", "reference"), [((0.25, 0.5, 0.6), 0.5), ((0.1, 0.3), 0.3)])
def test_the_reference(exponents: tuple[float, ...], reference: float) -> None:
    assert Plan(exponents, 2, ("none",), 1.0).reference == reference


def test_the_best_learning_rate() -> None:
    assert best({0.1: 3.0, 0.3: 2.0, 1.0: None}) == 0.3
    assert best({0.1: 3.0, 0.3: 2.0, 1.0: None}, greater=True) == 0.1
    assert [greater_is_better(metric) for metric in ("eval_loss", "eval_accuracy")] == [False, True]
    with pytest.raises(ValueError, match="0.1, 0.3"):
        best({0.1: None, 0.3: None})


@pytest.mark.parametrize(
    ("given", "match", "expected"),
    [
        (None, "none", "p=0.25"),
        ("p=0.4, update_scale=adam", "none", "p=0.25"),
        ("lr_mult.lora_B=16,p=0.4", "update_scale", "p=0.25,update_scale=adam,lr_mult.lora_B=16"),
        ("p.norm=0", "learning_rate", "p=0.25,p.norm=0"),
    ],
)
def test_the_script_s_other_optim_args_stay(given: str | None, match: str, expected: str) -> None:
    assert optim_args(given, configuration(match, 0.25, 1e-3, 1)) == expected


@pytest.mark.parametrize(
    ("words", "found"),
    [([], None), (["--x", "1", "--x", "2"], "2"), (["--x=3"], "3"), (["--x"], None), (["--y", "1"], None)],
)
def test_an_option_of_the_script(words: list[str], found: str | None) -> None:
    assert option(words, "--x") == found


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"exponents": (0.5, 0.5)}, "two exponents"),
        ({"exponents": (0.5, 7.0)}, "--p must be"),
        ({"seeds": 1}, "2 at least.*got 1"),
        ({"match": ("scale",)}, "update_scale"),
        ({"learning_rate": 0.0}, "> 0"),
    ],
)
def test_what_is_no_plan(changed: dict[str, Any], reason: str) -> None:
    options = {"exponents": (0.25, 0.5), "seeds": 2, "match": ("none",), "learning_rate": 1e-3}
    with pytest.raises(ValueError, match=reason):
        Plan(**(options | changed))
