"""Runs of claim 10, cut short: both recipes with every strategy, quick and full."""

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from _common.entry_point import RecipeError
from _common.pretrained import PretrainingSettings, pydoc_checkpoint
from _common.pretrained_vit import ViTPretrainingSettings, vit_checkpoint
from papers._claims.options import Options
from papers.allocation import fine_tuning
from papers.allocation.fine_tuning import RANDOM_SIGNS, TARGET

FEW_STEPS = ["--pretrain_steps", "2", "--max_steps", "20", "--per_device_train_batch_size", "4"]
SHORTER = {
    "gpt2_lora": ["--block_size", "32", "--max_train_blocks", "64", "--max_validation_blocks", "8"],
    "vit_lora": ["--max_train_images", "64"],
}


@pytest.fixture
def given(options: Options, monkeypatch: pytest.MonkeyPatch) -> Options:
    monkeypatch.setattr(fine_tuning, "INTERVAL", 5)
    monkeypatch.setattr(fine_tuning, "STEPS", 20)
    for recipe, shorter in SHORTER.items():
        monkeypatch.setitem(fine_tuning.QUICK, recipe, [*FEW_STEPS, *shorter])
    monkeypatch.setenv("XDG_CACHE_HOME", str(options.output_dir / "cache"))
    return dataclasses.replace(options, own=(("recipes", "gpt2_lora,vit_lora"),))


def first(given: Options, **wanted: Any) -> dict[str, Any]:
    return next(c for c in fine_tuning.configurations(given) if wanted.items() <= c.items())


@pytest.mark.parametrize("recipe", ["gpt2_lora", "vit_lora"])
def test_a_recipe_with_every_kind_of_p(given: Options, recipe: str) -> None:
    last = {}
    for strategy in ("p = 0.25", "Algorithm 1", TARGET, RANDOM_SIGNS):
        result = fine_tuning.run(first(given, recipe=recipe, strategy=strategy), given)
        assert not result["diverged"]
        steps = [step for step, _ in result["curves"]["pdyn/p"]]
        assert steps == [5, 10, 15, 20]
        assert fine_tuning.measured(result, "eval_loss")[0].tolist() == [0, 10, 20, 20]
        assert fine_tuning.ratio(result) > 0 and math.isfinite(fine_tuning.best_loss(result))
        last[strategy] = [p for _, p in result["curves"]["pdyn/p"]]
    assert last["p = 0.25"] == [0.25] * 4
    assert last[TARGET] != [0.5] * 4  # it holds U_w/U_b, whatever p that takes
    assert last[RANDOM_SIGNS][:2] == [0.5, 0.5] and abs(last[RANDOM_SIGNS][2] - 0.5) == pytest.approx(0.02)
    assert all(0.25 <= p <= 0.6 for of in last.values() for p in of)
    assert sys.argv[0] != f"{recipe}.py"


def test_one_recipe_alone(given: Options) -> None:
    alone = dataclasses.replace(given, own=(("recipes", "vit_lora"),))
    assert {c["recipe"] for c in fine_tuning.configurations(alone)} == {"vit_lora"}
    with pytest.raises(RecipeError, match="--recipes must be of gpt2_lora, vit_lora"):
        fine_tuning.configurations(dataclasses.replace(given, own=(("recipes", "bert"),)))


def write_faces(directory: Path) -> None:
    random = np.random.default_rng(0)
    for part in ("train", "test"):
        for emotion in ("1", "2", "3"):
            folder = directory / part / emotion
            folder.mkdir(parents=True)
            for i in range(3):
                Image.fromarray(random.integers(256, size=(20, 20, 3), dtype=np.uint8)).save(folder / f"{i}.png")


@pytest.mark.parametrize("recipe", ["gpt2_lora", "vit_lora"])
def test_a_full_run_takes_named_checkpoints(
    given: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    """Checkpoints of the recipes' own stand for those of the hub, and the runs are cut short."""
    if recipe == "gpt2_lora":
        checkpoint = pydoc_checkpoint(PretrainingSettings(steps=2), tmp_path, show_progress=False)
        shorter = ["--max_train_blocks", "16", "--max_validation_blocks", "4"]
    else:
        checkpoint = vit_checkpoint(ViTPretrainingSettings(steps=2), tmp_path, show_progress=False)
        shorter = []
    monkeypatch.setitem(fine_tuning.HUB, recipe, str(checkpoint))
    write_faces(tmp_path / "faces")
    full = dataclasses.replace(given, full=True, own=(*given.own, ("image_folder", str(tmp_path / "faces"))))
    configuration = first(full, recipe=recipe, strategy="Algorithm 1")
    assert configuration["options"][:2] == ["--model_name_or_path", str(checkpoint)]
    assert ("--image_folder" in configuration["options"]) == (recipe == "vit_lora")
    cut = ["--max_steps", "10", "--per_device_train_batch_size", "4", *shorter]
    result = fine_tuning.run({**configuration, "options": configuration["options"] + cut}, full)
    assert [step for step, _ in result["curves"]["pdyn/p"]] == [5, 10]
    assert math.isfinite(fine_tuning.best_loss(result))


def test_a_recipe_that_refuses_is_no_result(given: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fine_tuning.QUICK, "gpt2_lora", ["--block_size", "100000", "--pretrain_steps", "2"])
    with pytest.raises(RecipeError, match="--block_size must not exceed"):
        fine_tuning.run(first(given, recipe="gpt2_lora"), given)
