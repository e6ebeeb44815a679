import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from _common.pretrained_vit import ViTPretrainingSettings, vit_checkpoint
from hf_pdyn.sweep.outcome import CONFIRMED, INCONCLUSIVE, NO_EFFECT, OPPOSITE, Outcome
from papers._claims.options import Options
from papers.mirror_flow import lr_schedule
from papers.mirror_flow.lr_schedule import DECAYS, RATES, RESTARTS
from tests.recipes.papers.judging import UNEVEN, judged, options_of

SMALL = (0.0, 0.001, -0.001)
TINY = ViTPretrainingSettings(image_size=8, patch_size=4, hidden_size=16, n_layer=1, n_head=2, steps=2, batch_size=2)


def row(
    c: dict[str, Any],
    falls: float = 0.2,
    extra: float = 0.1,
    gain: float = 0.05,
    apart: float = 0.0,
    noise: tuple[float, ...] = SMALL,
) -> dict[str, Any]:
    """Log ratios that fall with the sum of learning rates, with restarts half as large, like straight lines.

    falls: over all of training. extra: with the larger decay. gain, apart: of restarts, in accuracy and log ratio.
    """
    random, restarts = noise[c["seed"]], c["schedule"] == RESTARTS
    sums = np.array([0.25, 0.5, 0.75, 1.0]) * (0.5 if restarts else 1.0)
    log_ratio = 1.0 - sums * (falls + (extra + random if c["decay"] == DECAYS[-1] else 0.0))
    if restarts:
        log_ratio += apart + random
    accuracy = 0.8 + (gain + random if restarts else 0.0)
    return {
        "step": [1, 2, 3, 4],
        "a": (-sums * c["decay"] * RATES["adamw"] * 4).tolist(),
        "ratio": np.exp(log_ratio).tolist(),
        "test_accuracy": [accuracy] * 4,
    }


@pytest.mark.parametrize("optimizer", RATES)
@pytest.mark.parametrize(
    ("changes", "part", "expected"),
    [
        ({}, "restarts are more accurate", CONFIRMED),
        ({"gain": -0.05}, "restarts are more accurate", OPPOSITE),
        ({"gain": 0.0}, "restarts are more accurate", NO_EFFECT),
        ({"extra": -0.1}, "more decay, smaller ratio", OPPOSITE),
        ({"extra": 0.0}, "more decay, smaller ratio", NO_EFFECT),
        ({"apart": 0.1}, "equal sums of learning rates, equal ratios", OPPOSITE),
        ({"apart": 0.02}, "equal sums of learning rates, equal ratios", INCONCLUSIVE),
    ],
)
def test_rule(options: Options, optimizer: str, changes: dict[str, float], part: str, expected: Outcome) -> None:
    found = judged(lr_schedule, options, lambda c: row(c, **changes if c["optimizer"] == optimizer else {}))
    assert found.parts[f"{part}, {optimizer}"].verdict is expected and found.verdict is expected


def test_seeds_that_differ_leave_it_open(options: Options) -> None:
    found = judged(lr_schedule, options, lambda c: row(c, noise=UNEVEN), draw=True)
    assert found.verdict is INCONCLUSIVE


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({}, CONFIRMED), ({"falls": 0.0, "extra": 0.0}, NO_EFFECT), ({"apart": -0.125}, OPPOSITE)],
)
def test_a_better_clock_is_apart(options: Options, changes: dict[str, float], expected: Outcome) -> None:
    """Half of the mean fall, 0.25, is what equal steps are apart by; shifted by as much, equal sums are."""
    found = judged(lr_schedule, options, lambda c: row(c, **changes))
    assert found.parts["sums are a better clock than steps (ours), sgd"].verdict is expected


@pytest.mark.parametrize("schedule", [lr_schedule.CONSTANT, RESTARTS])
@pytest.mark.parametrize("optimizer", RATES)
def test_a_short_run(options: Options, monkeypatch: pytest.MonkeyPatch, optimizer: str, schedule: str) -> None:
    """Of a smaller network than that of quick runs; a_t is that of AdamW with either optimizer."""
    monkeypatch.setattr(lr_schedule, "SMALL", TINY)
    monkeypatch.setenv("XDG_CACHE_HOME", str(options.output_dir / "cache"))
    given = options_of(lr_schedule, options)
    wanted = (optimizer, schedule, DECAYS[-1])
    c = next(c for c in lr_schedule.configurations(given) if (c["optimizer"], c["schedule"], c["decay"]) == wanted)
    found = lr_schedule.run({**c, "steps": 6, "batch_size": 4}, given)
    assert found["step"] == [1, 2, 3, 4, 5, 6] and max(found["test_accuracy"]) <= 1
    factors = [(1 + math.cos(math.pi * (step / 2 % 1))) / 2 if schedule == RESTARTS else 1.0 for step in range(6)]
    assert found["a"][-1] == pytest.approx(-1e-4 * DECAYS[-1] * sum(factors), rel=1e-3)


def test_full_takes_a_named_model_and_folders(options: Options, tmp_path: Path) -> None:
    checkpoint = vit_checkpoint(TINY, tmp_path / "cache", show_progress=False)
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(4):
                Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"{i}.png")
    own = {option.name: option.full for option in lr_schedule.OPTIONS}
    own |= {"model_name_or_path": str(checkpoint), "image_folder": str(tmp_path / "images")}
    given = dataclasses.replace(options, full=True, own=tuple(own.items()))
    c = lr_schedule.configurations(given)[0]
    assert (c["steps"], c["batch_size"]) == (25_000, 256)
    assert len(lr_schedule.run({**c, "steps": 2, "batch_size": 2}, given)["ratio"]) == 2
