"""Every claim's rule, on results of which it is known what they say."""

import dataclasses
import itertools
import json
import math
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hf_pdyn.sweep.outcome import CONFIRMED, INCONCLUSIVE, NO_EFFECT, OPPOSITE, Identity, Outcome
from papers._claims.claim import Claim
from papers._claims.options import Options
from papers._claims.training import CURVES, TABLE_2
from papers._claims.verdict import Part
from papers.allocation import (
    dynamic_p,
    fine_tuning,
    path_allocation,
    residual_update,
    sparse_gain,
)
from tests.recipes.papers.conftest import rows_of

Configuration = dict[str, Any]
Result = Callable[[Configuration], dict[str, Any]]
LAYERS = ("resnet.embedder.embedder.convolution", "classifier.1")


def noise(configuration: Configuration) -> float:
    """Small, different from run to run, the same for every call."""
    digits = zlib.crc32(repr(sorted(configuration.items())).encode())
    return 1 + 0.01 * math.sin(digits)


def network(
    configuration: Configuration,
    *,
    ratio: float = 5.0,
    p50: float = 0.1,
    tail: float = 3.0,
    rise: float = 1.0,
    accuracy: float = 0.9,
    update_ratio: float = 4.0,
    hard: list[int] | None = None,
) -> dict[str, Any]:
    """A result of a network: with `ratio` all through training, times `rise` from its middle on."""
    epochs, factor = 8, noise(configuration)
    curves: dict[str, list[float | None]] = {name: [1.0 * factor] * epochs for name in CURVES}
    curves["G_w_over_G_b"] = [ratio * factor] * (epochs // 2) + [ratio * factor * rise] * (epochs // 2)
    curves["test_accuracy"] = np.linspace(0.5, accuracy * factor, epochs).tolist()
    curves["update_w"] = [update_ratio * factor] * epochs
    curves["D_b"] = [1.0 + 0.1 * (-1) ** i for i in range(epochs)]
    curves["D_w"] = [1.0 + 0.1 * (-1) ** (i // 2) for i in range(epochs)]
    row = dict.fromkeys(TABLE_2, 0.5 * factor) | {"p50": p50 * factor, "p95": tail * factor, "p99": 2 * tail * factor}
    by_layer = {layer: [ratio * factor] * epochs for layer in LAYERS}
    return {
        "curves": curves,
        "table_2": {"train": row, "test": row},
        "gradients": {
            "weight": by_layer,
            "bias_like": {layer.replace("convolution", "normalization"): [1.0] * epochs for layer in LAYERS},
        },
        "hard": {"train": hard or [1, 2], "test": hard or [1, 2]},
        "updates": {"bias_like": {"a.normalization": [1.0] * epochs, "classifier.1": [1.0] * epochs}},
        "samples": {"train": 400, "test": 400},
        "matched_within": 0.05,
        "lr_factors": [1.0] * epochs,
    }


def gaining(points: float) -> Result:
    return lambda c: network(c, accuracy=0.8 + (points if c["strategy"] in dynamic_p.FALLING else 0.0))


def gaining_with_luck(c: Configuration) -> dict[str, Any]:
    """0.03 more in the mean, but by less than seeds differ."""
    return network(c, accuracy=0.8 + ((0.1, -0.02, 0.01)[c["seed"]] if c["strategy"] in dynamic_p.FALLING else 0.0))


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


def tuned(slope: float, gain: float) -> Result:
    def result(c: Configuration) -> dict[str, Any]:
        factor = noise(c)
        loss = 2.0 * (1 - (gain if c["strategy"] in fine_tuning.FALLING else 0.0)) * factor
        curves = {"pdyn/D_w": [[s, math.exp(slope * c["p"]) * factor] for s in range(8)]}
        curves |= {"pdyn/D_b": [[s, 1.0] for s in range(8)], "eval_loss": [[0, 9.0], [8, loss]]}
        return {"diverged": False, "curves": curves}

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
    (dynamic_p, gaining(+0.1), CONFIRMED),
    (dynamic_p, gaining_with_luck, INCONCLUSIVE),
    (dynamic_p, gaining(-0.1), OPPOSITE),
    (fine_tuning, tuned(-3.0, 0.2), CONFIRMED),
    (fine_tuning, tuned(-3.0, -0.2), OPPOSITE),
    (fine_tuning, tuned(+3.0, 0.2), OPPOSITE),
    (fine_tuning, tuned(0.0, 0.2), NO_EFFECT),
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
    assert sorted(found.number for found in judged) == [1, 2, 3, 8, 10]
    assert len({found.claim for found in judged}) == 5


@pytest.mark.parametrize("which", [{"p": 0.3, "update_scale": "raw"}, {"strategy": "p 0.6 to 0.5"}])
def test_a_recipe_that_diverged_confirms_nothing(options: Options, which: dict[str, Any]) -> None:
    """Its losses before it did so are no result either."""

    def result(c: Configuration) -> dict[str, Any]:
        found = tuned(-3.0, 0.2)(c)
        if which.items() <= c.items():
            found["diverged"] = True
            found["curves"]["eval_loss"][-1][1] = None
        return found

    rows = rows_of(list(fine_tuning.configurations(options)), result)
    fine_tuning.draw(rows, dataclasses.replace(options, claim=fine_tuning.CLAIM.name))
    assert fine_tuning.judge(rows, options).verdict == INCONCLUSIVE


def test_a_strategy_that_diverged_gains_nothing(options: Options) -> None:
    """Whatever is asked about it: nothing of a training can be read where all of it is missing."""

    def result(c: Configuration) -> dict[str, Any]:
        found = gaining(+0.1)(c)
        if c["strategy"] in ("p 0.6 to 0.5", "lr matched to p 0.45 to 0.35"):
            found["curves"] = {name: [None] * len(values) for name, values in found["curves"].items()}
            updates = found["updates"]["bias_like"]
            found["updates"]["bias_like"] = {layer: [None] * len(norms) for layer, norms in updates.items()}
            found["matched_within"] = math.nan
        return found

    given = dataclasses.replace(options, claim=dynamic_p.CLAIM.name)
    rows = rows_of(dynamic_p.configurations(given), result)
    dynamic_p.draw(rows, given)
    verdict = dynamic_p.judge(rows, given)
    assert verdict.verdict != CONFIRMED
    assert not any(part.verdict == CONFIRMED for name, part in verdict.parts.items() if name != "prediction 3")
    verdict.write(given.directory)
    json.loads((given.directory / "verdict.json").read_text(), parse_constant=pytest.fail)  # JSON has no NaN


def test_parts_of_dynamic_p(options: Options) -> None:
    """Faster by construction: a falling p is at 0.9 from the second of eight epochs on."""

    def result(c: Configuration) -> dict[str, Any]:
        found = network(c)
        moves = c["strategy"] in dynamic_p.MOVING
        found["curves"]["test_accuracy"] = [0.5, *[0.95] * 7] if moves else np.linspace(0.5, 0.9, 8).tolist()
        found["curves"]["update_w"] = [8.0 if moves else 4.0] * 8
        found["curves"]["D_b"] = [(2.0 if moves else 1.0) * norm for norm in found["curves"]["D_b"]]
        return found

    parts = dynamic_p.parts(rows_of(dynamic_p.configurations(options), result))
    assert parts["faster"] == Part(CONFIRMED, "0.75 ± 0 of the baseline's epochs saved, missed with 0 of 3 seeds")
    assert parts["prediction 3"].verdict == CONFIRMED
    assert parts["prediction 3"].measured.startswith("opposite changes in 0.286 ")  # 2 of 7 changes
    assert {parts[f"prediction 4, {kind}"].verdict for kind in dynamic_p.KINDS} == {CONFIRMED}
    assert parts["prediction 5"].verdict is NO_EFFECT  # nothing moves


def test_a_baseline_that_is_never_reached_is_reached_after_the_end(options: Options) -> None:
    """With eight epochs, nine where the baseline needs eight: the share saved is at most -1/8."""

    def result(c: Configuration) -> dict[str, Any]:
        return network(c, accuracy=0.5 if c["strategy"] in dynamic_p.MOVING else 0.9)

    part = dynamic_p.parts(rows_of(dynamic_p.configurations(options), result))["faster"]
    assert part == Part(OPPOSITE, "-0.125 ± 0 of the baseline's epochs saved, missed with 3 of 3 seeds")


@pytest.mark.parametrize("full", [False, True])
def test_configurations_differ(options: Options, full: bool) -> None:
    own = (("data_dir", "cifar"), ("image_folder", "faces"), ("model_name_or_path", "model"))
    given = dataclasses.replace(options, full=full, own=own)
    for module in {case[0] for case in CASES}:
        found = [repr(sorted(c.items())) for c in module.CLAIM.configurations(given)]
        assert len(set(found)) == len(found), module.CLAIM.name
        for one, other in itertools.pairwise(module.CLAIM.configurations(given)):
            assert one.keys() >= {"seed"} and other.keys() >= {"seed"}
