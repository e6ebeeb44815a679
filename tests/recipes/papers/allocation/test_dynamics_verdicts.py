"""The rules of claims 8, 10 and 12, on results of which it is known what they say."""

import dataclasses
import json
import math
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from hf_pdyn.sweep.outcome import CONFIRMED, INCONCLUSIVE, NO_EFFECT, OPPOSITE, Outcome
from papers._claims.options import Options
from papers.allocation import dynamic_p, fine_tuning, label_p
from papers.allocation._strategies import BASELINE, FALLING, MATCHED, MOVING, ONE_RATE, best_fixed, tuned_rate
from tests.recipes.papers.conftest import rows_of

Configuration = dict[str, Any]
Result = Callable[[Configuration], dict[str, Any]]
SIZE = {
    "recipes": "gpt2_lora,vit_lora",
    "data": "digits",
    "fashion_mnist_dir": "",
    "data_dir": None,
    "train_images": 500,
    "test_images": 3000,
    "pixels": 14,
    "width": 12,
    "epochs": 40,
    "batch_size": 32,
}


@pytest.fixture
def given(options: Options) -> Options:
    return dataclasses.replace(options, seeds=6, own=tuple(SIZE.items()))


def luck(configuration: Configuration, size: float = 1e-4) -> float:
    """Small, different from run to run, the same for every call."""
    return size * math.sin(zlib.crc32(repr(sorted(configuration.items(), key=str)).encode()))


def network(
    c: Configuration, *, accuracy: float = 0.78, validation: float | None = None, start: float = 0.5, **more: Any
) -> dict[str, Any]:
    last = accuracy + luck(c)
    curve = [start, *[last if validation is None else validation + luck(c)] * 19]
    return {
        "validation_accuracy": curve,
        "test_accuracy": last,
        "test_loss": 1.0,
        "train_accuracy": 1.0,
        "update_centre": {"norm": 12.0 + luck(c), "bias": 12.0 + luck(c)},
        "opposite_changes": 0.1 + luck(c),
        "log_update_ratio": 2.0 + luck(c),
        "log_D_b": -2.0 + luck(c),
        "mean_p": c["p"],
        "last_p": c["p"],
        "matched_within": 0.01,
    } | more


def gaining(points: float, scales: tuple[str, ...] = ("raw", "adam")) -> Result:
    """With every moving p, at each learning rate."""
    return lambda c: network(
        c, accuracy=0.78 + (points if c["strategy"] in MOVING and c["update_scale"] in scales else 0.0)
    )


def gaining_by_luck(c: Configuration) -> dict[str, Any]:
    gains = (0.08, -0.02, 0.01, 0.0, 0.01, -0.01)
    return network(c, accuracy=0.78 + (gains[c["seed"]] if c["strategy"] in MOVING else 0.0))


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (gaining(+0.02), CONFIRMED),
        (gaining(-0.02), OPPOSITE),
        (gaining(0.0), NO_EFFECT),
        (gaining(+0.02, ("raw",)), NO_EFFECT),
        (gaining_by_luck, INCONCLUSIVE),
    ],
)
def test_moving_p(given: Options, result: Result, expected: Outcome) -> None:
    given = dataclasses.replace(given, claim="dynamic_p")
    rows = rows_of(dynamic_p.configurations(given), result)
    found = dynamic_p.CLAIM.judged(rows, given)
    assert found.verdict is expected
    dynamic_p.draw(rows, given)
    assert (given.directory / "figure.png").stat().st_size > 10_000
    found.write(given.directory)
    json.loads((given.directory / "verdict.json").read_text(), parse_constant=pytest.fail)  # JSON has no NaN


def test_learning_rates_are_chosen_on_validation_images(given: Options) -> None:
    """Algorithm 1 is best on the test images where it is not on the others: that is not what is compared."""

    def result(c: Configuration) -> dict[str, Any]:
        steered = c["strategy"] == "Algorithm 1"
        best = c["lr"] == 0.01
        validation = 0.8 if best else 0.7
        return network(c, accuracy=0.9 if steered and not best else 0.78, validation=validation)

    rows = rows_of(dynamic_p.configurations(given), result)
    assert tuned_rate(rows, "Algorithm 1", "raw") == tuned_rate(rows, BASELINE, "adam") == 0.01
    assert abs(dynamic_p.gains(rows)["raw", "Algorithm 1"]).max() < 1e-3


def test_parts_have_their_own_comparisons(given: Options) -> None:
    """Raw and at one rate moving p gains; so does the learning rate matched to it, and a coin; and p = 0.6 more."""

    def result(c: Configuration) -> dict[str, Any]:
        name = c["strategy"]
        accuracy = 0.78
        if name == "p = 0.6":
            accuracy = 0.84
        elif name in MOVING or name in MATCHED or name == "random signs":
            accuracy = 0.8
        return network(c, accuracy=accuracy)

    rows = rows_of(dynamic_p.configurations(given), result)
    parts = {name: part.verdict for name, part in dynamic_p.parts(rows).items()}
    assert parts["at one learning rate, raw"] is CONFIRMED
    assert parts["lr matched in size"] is NO_EFFECT
    assert parts["random signs"] is NO_EFFECT
    assert best_fixed(rows, "raw") == "p = 0.6" and parts["best fixed p"] is OPPOSITE
    assert parts["sooner"] is parts["prediction 3"] is parts["prediction 5"] is NO_EFFECT
    assert {parts[f"prediction 4, {kind}"] for kind in dynamic_p.KINDS} == {NO_EFFECT}


def test_predictions(given: Options) -> None:
    """Sooner from the first validation on, twice the ratio and the bias gradients, and later updates of both kinds."""

    def result(c: Configuration) -> dict[str, Any]:
        moves = c["strategy"] in MOVING
        more: dict[str, Any] = {"opposite_changes": 0.3 + luck(c)}
        if moves:
            more |= {"log_update_ratio": 3.0 + luck(c), "log_D_b": -1.0 + luck(c)}
            more["update_centre"] = {"norm": 14.0 + luck(c), "bias": 15.0 + luck(c)}
        found = network(c, start=0.78 if moves else 0.5, **more)
        if not moves:
            found["validation_accuracy"][1:4] = [0.5] * 3
        return found

    parts = {
        name: part.verdict for name, part in dynamic_p.parts(rows_of(dynamic_p.configurations(given), result)).items()
    }
    assert parts["sooner"] is CONFIRMED and parts["prediction 3"] is CONFIRMED and parts["prediction 5"] is CONFIRMED
    assert {parts[f"prediction 4, {kind}"] for kind in dynamic_p.KINDS} == {CONFIRMED}


def test_sooner_has_no_side() -> None:
    """Exchanged runs save what they lost; and where both are alike, nothing."""
    slow = {"validation_accuracy": [0.2, 0.4, 0.6, 0.8]}
    fast = {"validation_accuracy": [0.2, 0.77, 0.77, 0.77]}
    assert dynamic_p.saved(fast, slow) == 0.5 == -dynamic_p.saved(slow, fast)
    assert dynamic_p.saved(slow, slow) == 0


def test_a_network_that_diverged_confirms_nothing(given: Options) -> None:
    def result(c: Configuration) -> dict[str, Any]:
        if c["strategy"] == "p 0.6 to 0.5" and c["seed"] == 2:
            lost = dict.fromkeys(("test_loss", "log_update_ratio", "log_D_b", "opposite_changes", "matched_within"))
            return network(c, update_centre={"norm": None, "bias": None}, **lost)
        return gaining(+0.02)(c)

    given = dataclasses.replace(given, claim="dynamic_p")
    rows = rows_of(dynamic_p.configurations(given), result)
    dynamic_p.draw(rows, given)
    assert dynamic_p.judge(rows, given).verdict is INCONCLUSIVE


def test_runs_are_in_order_of_worth(given: Options) -> None:
    """Whole seeds first; and the learning rate of the raw comparison is one that all of them have."""
    found = dynamic_p.configurations(given)
    plain = [one["seed"] for one in found if one["strategy"] not in MATCHED]
    assert plain == sorted(plain) and [one["strategy"] in MATCHED for one in found] == sorted(
        one["strategy"] in MATCHED for one in found
    )
    for strategy in (*FALLING, "Algorithm 1", "random signs", BASELINE):
        assert ONE_RATE in dynamic_p.rates(strategy, "raw")
    assert len({json.dumps(one, sort_keys=True) for one in found}) == len(found)


def labelled(*, level: float, difference: float, accuracy: float = 0.0) -> Result:
    """U_w/U_b and G_w/G_b that go with p_w, and with p_w - p_b of both labels alike."""

    def result(c: Configuration) -> dict[str, Any]:
        apart = c["p"] - (c["p_norm"] + c["p_bias"]) / 2
        log = level * (0.5 - c["p"]) + difference * apart + luck(c)
        return {
            "log U_w/U_b": log,
            "log G_w/G_b": log,
            "test_accuracy": 0.78 + accuracy * apart + luck(c),
            "test_loss": 1.0,
            "train_accuracy": 1.0,
        }

    return result


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (labelled(level=0.0, difference=2.0), CONFIRMED),
        (labelled(level=2.0, difference=2.0), OPPOSITE),
        (labelled(level=0.0, difference=0.0), NO_EFFECT),
    ],
)
def test_p_by_label(given: Options, result: Result, expected: Outcome) -> None:
    given = dataclasses.replace(given, claim="label_p")
    rows = rows_of(label_p.configurations(given), result)
    found = label_p.CLAIM.judged(rows, given)
    assert found.verdict is expected and found.parts["test accuracy"].verdict is NO_EFFECT
    assert found.parts["by label"].verdict is (CONFIRMED if expected is not NO_EFFECT else NO_EFFECT)
    assert found.parts["same difference"].verdict is (CONFIRMED if expected is OPPOSITE else NO_EFFECT)
    label_p.draw(rows, given)
    assert (given.directory / "figure.png").stat().st_size > 10_000


def test_a_label_that_nothing_is_known_of(given: Options) -> None:
    def result(c: Configuration) -> dict[str, Any]:
        found = labelled(level=0.0, difference=2.0)(c)
        return found | {"log U_w/U_b": None} if c["seed"] == 1 else found

    assert label_p.judge(rows_of(label_p.configurations(given), result), given).verdict is INCONCLUSIVE


def tuned(*, slope: float = -3.0, gains: dict[str, float] | None = None, p_matters: float = 0.0) -> Result:
    """G_w/G_b that goes with p, and losses that are less by what a strategy gains."""

    def result(c: Configuration) -> dict[str, Any]:
        p = c["p"] if c["strategy"] in fine_tuning.FIXED else 0.5
        loss = 2.0 - (gains or {}).get(c["strategy"], 0.0) + p_matters * p + luck(c)
        curves = {"pdyn/D_w": [[s, math.exp(slope * p) + luck(c)] for s in range(8)]}
        curves |= {"pdyn/D_b": [[s, 1.0] for s in range(8)], "pdyn/p": [[s, p] for s in range(8)]}
        return {"diverged": False, "curves": curves | {"eval_loss": [[0, 9.0], [4, loss], [8, loss + 0.1]]}}

    return result


HELPS = {"Algorithm 1": 0.2}


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (tuned(gains=HELPS), CONFIRMED),
        (tuned(slope=+3.0, gains=HELPS), OPPOSITE),
        (tuned(gains={"Algorithm 1": -0.2}), OPPOSITE),
        (tuned(), NO_EFFECT),
    ],
)
def test_fine_tuning(given: Options, result: Result, expected: Outcome) -> None:
    given = dataclasses.replace(given, claim="fine_tuning")
    rows = rows_of(fine_tuning.configurations(given), result)
    assert fine_tuning.CLAIM.judged(rows, given).verdict is expected
    fine_tuning.draw(rows, given)
    assert (given.directory / "figure.png").stat().st_size > 10_000


def test_what_algorithm_1_is_compared_with(given: Options) -> None:
    """A coin gains as much, a target more, and p = 0.25 less; of fixed p the smallest is the best."""
    gains = {"Algorithm 1": 0.2, "random signs": 0.2, "control by target": 0.4}
    rows = rows_of(fine_tuning.configurations(given), tuned(gains=gains, p_matters=0.1))
    parts = {name: part.verdict for name, part in fine_tuning.judge(rows, given).parts.items()}
    assert parts == {
        "fixed p": CONFIRMED,
        "Algorithm 1 against p = 0": CONFIRMED,
        "Algorithm 1 against p = 0.25": CONFIRMED,
        "Algorithm 1 against control by target": OPPOSITE,
        "Algorithm 1 against random signs": NO_EFFECT,
    }


@pytest.mark.parametrize("strategy", ["p = 0", "Algorithm 1"])
def test_a_recipe_that_diverged_confirms_nothing(given: Options, strategy: str) -> None:
    def result(c: Configuration) -> dict[str, Any]:
        found = tuned(gains=HELPS)(c)
        return found | {"diverged": c["strategy"] == strategy and c["seed"] == 0}

    given = dataclasses.replace(given, claim="fine_tuning")
    rows = rows_of(fine_tuning.configurations(given), result)
    fine_tuning.draw(rows, given)
    assert fine_tuning.judge(rows, given).verdict is INCONCLUSIVE
