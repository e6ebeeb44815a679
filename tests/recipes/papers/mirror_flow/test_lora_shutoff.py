import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from _common.pretrained import PretrainingSettings, pydoc_checkpoint
from hf_pdyn.sweep.outcome import CONFIRMED, INCONCLUSIVE, NO_EFFECT, OPPOSITE, Outcome
from papers._claims.options import Options
from papers.mirror_flow import lora_shutoff
from papers.mirror_flow.lora_shutoff import CONSTANT, CROSSINGS, LARGER_RATE, PAPERS_RATE
from tests.recipes.papers.judging import UNEVEN, judged, options_of

STEPS = np.arange(20, 501, 20)
SMALL = (0.0, 0.0005, -0.0005)
TINY = PretrainingSettings(n_layer=1, n_embd=16, n_head=2, block_size=16, batch_size=2, steps=2)


def row(
    c: dict[str, Any],
    by_decay: float = -0.1,
    falls: float = 0.2,
    rises: float = 0.1,
    cross: float = 450,
    lower: float = 0.1,
    none: float = 0.0,
    noise: tuple[float, ...] = SMALL,
) -> dict[str, Any]:
    """Log ratios that are lines.

    by_decay: of constant decay, by its logarithm. falls: of constant decay, over training. rises: of the other, against
    the constant decay of its crossing, over training. cross: the step at which they meet. lower: the loss, by the
    shutoff. none: without decay.
    """
    random, other = noise[c["seed"]], CROSSINGS[c["lr"]].get(c["decay"], 1.0)
    decay = other if c["off"] else c["decay"]
    log_ratio = np.full(len(STEPS), none + random)
    if decay:
        log_ratio = (by_decay + random) * math.log(decay) - (falls + random) * STEPS / 500
    if c["off"]:
        log_ratio += rises * (STEPS - cross - random * 500) / 500
    loss = 5.0 - (lower + random if c["off"] else 0.0)
    return {
        "step": STEPS.tolist(),
        "a": (-STEPS * c["decay"] * c["lr"] * 10).tolist(),
        "ratio": np.exp(log_ratio).tolist(),
        "test_loss": np.linspace(5.5, loss, len(STEPS)).tolist(),
    }


@pytest.mark.parametrize(
    ("changes", "part", "expected"),
    [
        ({}, "more decay, smaller ratio", CONFIRMED),
        ({"by_decay": 0.1}, "more decay, smaller ratio", OPPOSITE),
        ({"by_decay": 0.0}, "more decay, smaller ratio", NO_EFFECT),
        ({"rises": 0.3}, "the ratio falls after the shutoff", OPPOSITE),
        ({"rises": 0.2}, "the ratio falls after the shutoff", NO_EFFECT),
        ({"cross": 350}, "crossings come after equal sums", OPPOSITE),
        ({"cross": 402}, "crossings come after equal sums", NO_EFFECT),
        ({"cross": 900}, "crossings come after equal sums", CONFIRMED),
        ({"cross": 100}, "crossings come after equal sums", INCONCLUSIVE),
        ({"lower": -0.1}, "the shutoff lowers test loss", OPPOSITE),
        ({"lower": 0.0}, "the shutoff lowers test loss", NO_EFFECT),
    ],
)
def test_what_the_paper_says(options: Options, changes: dict[str, float], part: str, expected: Outcome) -> None:
    """The verdict is on the paper's learning rate alone."""
    found = judged(lora_shutoff, options, lambda c: row(c, **changes if c["lr"] == PAPERS_RATE else {}))
    assert found.parts[f"{part}, learning rate {PAPERS_RATE:g}"].verdict is expected and found.verdict is expected
    assert found.parts[f"{part}, learning rate {LARGER_RATE:g}"].verdict is CONFIRMED


def test_seeds_that_differ_leave_all_open(options: Options) -> None:
    found = judged(lora_shutoff, options, lambda c: row(c, noise=UNEVEN), draw=True)
    assert found.verdict is INCONCLUSIVE


@pytest.mark.parametrize(
    ("none", "expected"), [(2.0, CONFIRMED), (-2.0, OPPOSITE), (0.1 * math.log(2) - 0.2 + 0.01, NO_EFFECT)]
)
def test_stored(options: Options, none: float, expected: Outcome) -> None:
    found = judged(lora_shutoff, options, lambda c: row(c, none=none, noise=(0.0, 1e-4, -1e-4)))
    name = f"stored: below the run without decay at the end (ours), learning rate {LARGER_RATE:g}"
    assert found.parts[name].verdict is expected and found.verdict is CONFIRMED


@pytest.mark.parametrize(("cross", "expected"), [(400, CONFIRMED), (499, OPPOSITE), (450, INCONCLUSIVE)])
def test_equal_sums(options: Options, cross: float, expected: Outcome) -> None:
    found = judged(lora_shutoff, options, lambda c: row(c, cross=cross))
    assert found.parts[f"equal sums, equal ratios (ours), learning rate {PAPERS_RATE:g}"].verdict is expected


def test_crossings_are_between_records() -> None:
    steps = np.array([10.0, 20.0, 30.0, 40.0])
    assert lora_shutoff._crossing(steps, np.array([1.0, -1.0, -1.0, 3.0]), 1) == 32.5
    assert lora_shutoff._crossing(steps, np.array([-1.0, -1.0, -1.0, -3.0]), 1) == 40
    assert math.isnan(lora_shutoff._crossing(steps, np.array([-1.0, 0.0, -1.0, 3.0]), 1))


@pytest.mark.parametrize("off", [False, True])
def test_a_short_run(options: Options, monkeypatch: pytest.MonkeyPatch, off: bool) -> None:
    """On a smaller model than that of quick runs."""
    monkeypatch.setattr(lora_shutoff, "SMALL", TINY)
    monkeypatch.setenv("XDG_CACHE_HOME", str(options.output_dir / "cache"))
    given = options_of(lora_shutoff, options)
    sizes = {"steps": 10, "batch_size": 2, "block_size": 16}
    c = next(c for c in lora_shutoff.configurations(given) if (c["decay"], c["off"]) == (1.0, off))
    found = lora_shutoff.run({**c, **sizes}, given)
    assert found["step"] == list(range(1, 11))
    assert found["a"][-1] == pytest.approx(-c["lr"] * 10 * (4 if off else 10), rel=1e-3)
    assert all(1 < ratio < 8**0.5 for ratio in found["ratio"]) and min(found["test_loss"]) > 0


def test_full_takes_a_named_model(options: Options, tmp_path: Path) -> None:
    checkpoint = pydoc_checkpoint(TINY, tmp_path, show_progress=False)
    own = {option.name: option.full for option in lora_shutoff.OPTIONS} | {"model_name_or_path": str(checkpoint)}
    given = dataclasses.replace(options, full=True, own=tuple(own.items()))
    c = lora_shutoff.configurations(given)[0]
    assert (c["model"], c["steps"], c["batch_size"], c["block_size"]) == (str(checkpoint), 500, 16, 256)
    assert len(lora_shutoff.run({**c, "steps": 2, "batch_size": 2, "block_size": 64}, given)["ratio"]) == 2


def test_every_crossing_has_its_constant_decay() -> None:
    assert all(
        other in CONSTANT[lr] and decay in CONSTANT[lr] for lr in CONSTANT for decay, other in CROSSINGS[lr].items()
    )
