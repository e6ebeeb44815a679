import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_pdyn.sweep.outcome import CONFIRMED, INCONCLUSIVE, NO_EFFECT, OPPOSITE, Outcome
from papers._claims.options import Options
from papers.mirror_flow import attention_rank
from papers.mirror_flow.attention_rank import OURS, PAPERS
from tests.recipes.cifar import write_cifar100
from tests.recipes.papers.judging import UNEVEN, judged, options_of

SMALL = (0.0, 0.001, -0.001)


def row(
    c: dict[str, Any],
    by_decay: float = -0.05,
    rise: float = 0.1,
    rise_with_most: float = 0.0,
    gain: float = 0.05,
    too_large: tuple[float, float] = (-0.2, -0.5),
    noise: tuple[float, ...] = SMALL,
) -> dict[str, Any]:
    """by_decay: of the log ratio, by log decay. rise: since the first record. too_large: accuracy, log ratio."""
    random, decay = noise[c["seed"]], c["decay"]
    end, accuracy = 1.0 + (by_decay + random) * math.log(decay / PAPERS[0]), 0.8
    if decay in OURS:
        accuracy, end = accuracy + too_large[0] + random, 1.0 + too_large[1] + random
    accuracy += gain + random if decay == PAPERS[-1] else 0.0
    late = rise_with_most if decay == PAPERS[-1] else rise + random
    ratio = np.exp([end - late, end + 1.0, end, end])
    return {
        "step": [1, 2, 3, 4],
        "a": [0.0, 0.0, 0.0, -decay],
        "ratio": ratio.tolist(),
        "test_accuracy": [accuracy] * 4,
    }


@pytest.mark.parametrize(
    ("changes", "part", "expected"),
    [
        ({}, "more decay, smaller ratio", CONFIRMED),
        ({"by_decay": 0.05}, "more decay, smaller ratio", OPPOSITE),
        ({"by_decay": 0.0}, "more decay, smaller ratio", NO_EFFECT),
        ({"rise": -0.1, "rise_with_most": -0.2}, "the ratio rises late with 0.0001", OPPOSITE),
        ({"rise": 0.0, "rise_with_most": -0.2}, "the ratio rises late with 0.0001", NO_EFFECT),
        ({"rise_with_most": 0.2}, "it rises less with 0.5", OPPOSITE),
        ({"rise_with_most": 0.1}, "it rises less with 0.5", NO_EFFECT),
        ({"gain": -0.05}, "large decay, higher accuracy", OPPOSITE),
        ({"gain": 0.0}, "large decay, higher accuracy", NO_EFFECT),
    ],
)
def test_rule(options: Options, changes: dict[str, float], part: str, expected: Outcome) -> None:
    found = judged(attention_rank, options, lambda c: row(c, noise=(0.0, 1e-4, -1e-4), **changes))
    assert found.parts[part].verdict is expected and found.verdict is expected


def test_seeds_that_differ_leave_it_open(options: Options) -> None:
    found = judged(attention_rank, options, lambda c: row(c, noise=UNEVEN), draw=True)
    assert found.verdict is INCONCLUSIVE


@pytest.mark.parametrize(
    ("too_large", "expected"), [((-0.2, -0.5), CONFIRMED), ((0.2, -0.5), OPPOSITE), ((-0.2, 0.0), NO_EFFECT)]
)
def test_too_large_a_decay_is_apart(options: Options, too_large: tuple[float, float], expected: Outcome) -> None:
    found = judged(attention_rank, options, lambda c: row(c, too_large=too_large))
    assert found.parts[f"too large a decay, {OURS[-1]:g} (ours)"].verdict is expected and found.verdict is CONFIRMED


def test_a_short_run(options: Options) -> None:
    given = options_of(attention_rank, options)
    c = attention_rank.configurations(given)[-1]
    found = attention_rank.run({**c, "steps": 6, "batch_size": 4}, given)
    assert found["step"] == [1, 2, 3, 4, 5, 6]
    assert all(1 < ratio < 32**0.5 for ratio in found["ratio"]) and max(found["test_accuracy"]) <= 1
    cosines = [(1 + math.cos(math.pi * (3 * step / 6 % 1))) / 2 for step in range(6)]
    assert found["a"][-1] == pytest.approx(-c["lr"] * c["decay"] * sum(cosines), rel=1e-3)


def test_full_takes_cifar(options: Options, tmp_path: Path) -> None:
    write_cifar100(tmp_path / "cifar", 8)
    own = {option.name: option.full for option in attention_rank.OPTIONS} | {"data_dir": str(tmp_path / "cifar")}
    given = dataclasses.replace(options, full=True, own=tuple(own.items()))
    c = attention_rank.configurations(given)[0]
    assert c["network"]["hidden_size"] == 192 and c["steps"] == 78_000
    network = {**c["network"], "num_hidden_layers": 1, "hidden_size": 12}
    assert len(attention_rank.run({**c, "steps": 2, "batch_size": 2, "network": network}, given)["ratio"]) == 2
