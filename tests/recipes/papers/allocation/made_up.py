"""Made-up results of runs of fixed p, of which it is known what they say."""

import math
import zlib
from typing import Any

import numpy as np

from papers._claims.stacked_training import CURVES, packed
from papers._claims.training import TABLE_2

LAYERS = ("stem", "stage 0.0 conv 0", "classifier")
TESTED, TRAINED = 400, 100
EPOCHS = 8

Configuration = dict[str, Any]


def noise(configuration: Configuration) -> float:
    """Small, different from run to run, the same for every call."""
    digits = zlib.crc32(repr(sorted(configuration.items())).encode())
    return 1 + 0.01 * math.sin(digits)


def mask(hard: list[int], count: int) -> str:
    found = np.zeros(count, bool)
    found[hard] = True
    return packed(found)


def network(
    configuration: Configuration,
    *,
    ratio: float = 5.0,
    invariant: float = 30.0,
    norm: float = 20.0,
    p50: float = 0.1,
    p95: float = 3.0,
    p99: float = 6.0,
    std: float = 1.0,
    share: float = 0.05,
    accuracy: float = 0.8,
    rise: float = 1.0,
    updates: float = 4.0,
    loss: float = 0.5,
    hard: list[int] | None = None,
) -> dict[str, Any]:
    """A result: with `ratio` in the first half of training and `rise` times as much in the second."""
    factor = noise(configuration)
    grown = [factor] * (EPOCHS // 2) + [factor * rise] * (EPOCHS // 2)
    curves: dict[str, list[Any]] = {name: [factor] * EPOCHS for name in CURVES}
    curves |= {
        "G_w_over_G_b": [ratio * one for one in grown],
        "by_name": [1.5 * ratio * one for one in grown],
        "invariant": [invariant * factor] * EPOCHS,
        "conv_norm": [norm * factor] * EPOCHS,
        "update_w": [updates * factor] * EPOCHS,
        "update_b": [1.0] * EPOCHS,
        "loss": [loss * (1.5 - i / EPOCHS) for i in range(EPOCHS)],
        "p": [configuration["p"]],
    }
    row = dict.fromkeys(TABLE_2, 0.5 * factor)
    row |= {"p50": p50, "p95": p95, "p99": p99, "std": std}
    row = {name: value * factor for name, value in row.items()}
    row |= {"share_above_5": share * factor, "accuracy": accuracy * factor}
    of_whole_set = {"G_w_over_G_b": ratio * factor, "by_name": ratio * factor, "invariant": invariant * factor}
    measured = {"table_2": {"train": row, "test": row}, "of_whole_set": of_whole_set}
    late = measured | {"of_whole_set": {name: value * rise for name, value in of_whole_set.items()}}
    own = hard if hard is not None else [*range(TESTED // 10)]
    return {
        "curves": curves,
        "measured": {str(EPOCHS // 2): measured, str(EPOCHS): late},
        "layers": {layer: [ratio * factor, 1.0, 2.0] for layer in LAYERS},
        "hard": {"train": mask([one for one in own if one < TRAINED], TRAINED), "test": mask(own, TESTED)},
        "samples": {"train": TRAINED, "test": TESTED},
        "eps_share": 0.0,
    }


def diverged(result: dict[str, Any]) -> dict[str, Any]:
    """Nothing of it is a number."""
    table = {split: dict.fromkeys(TABLE_2) for split in ("train", "test")}
    nothing = {"table_2": table, "of_whole_set": dict.fromkeys(("G_w_over_G_b", "by_name", "invariant"))}
    return result | {
        "curves": {name: [None] * EPOCHS for name in CURVES} | {"p": [0.0]},
        "measured": dict.fromkeys(result["measured"], nothing),
        "layers": dict.fromkeys(LAYERS, [None] * 3),
    }
