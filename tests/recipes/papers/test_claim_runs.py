"""One real run of every claim, cut short, quick and full, and a launch of two processes."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.distributed.elastic.utils.distributed import get_free_port
from transformers import ResNetConfig, ResNetForImageClassification

from _common.entry_point import RecipeError
from _common.pretrained import PretrainingSettings, pydoc_checkpoint
from _common.pretrained_vit import ViTPretrainingSettings, vit_checkpoint, write_processor
from papers._claims.options import Options
from papers._claims.rows import Rows
from papers.allocation import (
    dynamic_p,
    fine_tuning,
    path_allocation,
    residual_update,
    sparse_gain,
)
from tests.distributed.launching import ENVIRONMENT, ROOT
from tests.recipes.papers import launched_claim

LAUNCHED = Path(launched_claim.__file__)


def first(module: Any, options: Options, **wanted: Any) -> dict[str, Any]:
    return next(c for c in module.CLAIM.configurations(options) if wanted.items() <= c.items())


def test_residual_update(options: Options) -> None:
    result = residual_update.run({**first(residual_update, options, p=0.3), "steps": 3}, options)
    assert result["largest_error"] < residual_update.TOLERANCE
    assert 0 < result["weight_share"] < 1


def test_path_shares_are_those_of_the_updates(options: Options) -> None:
    """With p = 0 a first update goes along the gradients, whose share can be computed by hand: float32, 1e-4."""
    configuration = {**first(path_allocation, options, p=0.0, pi=1.0, update_scale="raw"), "steps": 1}
    configuration |= {"batch_size": configuration["samples"]}
    result = path_allocation.run(configuration, options)
    generator = torch.Generator().manual_seed(configuration["seed"])
    d, k, n = 64, 8, 1024
    X = path_allocation.sparse_inputs(torch.ones(d), n, generator)  # noqa: N806
    target = X @ torch.randn(d, k, generator=generator) / d**0.5 + torch.randn(k, generator=generator)
    target += 0.5 * torch.randn(target.shape, generator=generator)
    by_weight = torch.linalg.vector_norm(X @ (X.T @ target) / n)
    by_bias = torch.linalg.vector_norm(target.mean(0)) * n**0.5
    assert result["share"] == pytest.approx(float(by_weight / (by_weight + by_bias)), rel=1e-4)
    assert result["share"] == result["first_share"]


def test_sparse_gains_have_the_slope_of_theory(options: Options) -> None:
    """Of 8,192 samples the rarest of eight inputs is active in 41: log gains are good to 0.2 there, to 0.02 at most."""
    configuration = first(sparse_gain, options, case="noise", p=0.5)
    result = sparse_gain.run(configuration, options)
    assert result["slope"] == pytest.approx(-0.5, abs=0.05)
    expected = sparse_gain.expected_gain("noise", 0.5, configuration["eps"]).numpy()
    np.testing.assert_allclose(result["log_gain"], expected, atol=0.3)


@pytest.mark.parametrize("case", ["eps 0.01", "correlated"])
def test_where_slopes_break(options: Options, case: str) -> None:
    configuration = {**first(sparse_gain, options, case=case, p=0.5), "steps": 400}
    result = sparse_gain.run(configuration, options)
    expected = sparse_gain.expected_gain(case, 0.5, configuration["eps"]).numpy()
    np.testing.assert_allclose(result["log_gain"], expected, atol=0.3)
    # Between a rare and a middle level flatter than -p where eps dominates; at the active end steeper where inputs
    # correlate.
    low, high = (-4, -1) if case == "correlated" else (0, 5)
    width = (high - low) * -math.log(0.005) / (sparse_gain.LEVELS - 1)
    slope = (result["log_gain"][high] - result["log_gain"][low]) / width
    assert (slope < -0.6) if case == "correlated" else (slope > -0.4)


def test_a_learning_rate_that_matches_a_falling_p(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamic_p, "optimization", _short(dynamic_p.optimization, 3))
    strategy = "lr matched to p 0.45 to 0.35"
    result = dynamic_p.run(first(dynamic_p, options, strategy=strategy), options)
    falling = dynamic_p.run(first(dynamic_p, options, strategy="p 0.45 to 0.35"), options)
    assert result["curves"]["p"] == [0.5] * 3 and falling["curves"]["p"][-1] < 0.4
    assert len(result["lr_factors"]) == 3 and all(factor < 1 for factor in result["lr_factors"])
    sizes = [dynamic_p._update_sizes(found) for found in (result, falling)]
    assert result["matched_within"] == pytest.approx(float(np.abs(sizes[0] / sizes[1] - 1).max()))
    assert result["matched_within"] < 0.5


def _short(optimization: Any, epochs: int) -> Any:
    return lambda *arguments: dataclasses.replace(optimization(*arguments), epochs=epochs)


def write_faces(directory: Path) -> None:
    random = np.random.default_rng(0)
    for part in ("train", "test"):
        for emotion in ("1", "2", "3"):
            folder = directory / part / emotion
            folder.mkdir(parents=True)
            for i in range(3):
                Image.fromarray(random.integers(256, size=(20, 20, 3), dtype=np.uint8)).save(folder / f"{i}.png")


def test_faces_in_folders(options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint and images of its own, in RAF-DB's layout."""
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=7)
    ResNetForImageClassification(config).save_pretrained(tmp_path / "model")
    write_processor(tmp_path / "model", 16)
    write_faces(tmp_path / "faces")
    monkeypatch.setattr(dynamic_p, "optimization", _short(dynamic_p.optimization, 2))
    own = (("image_folder", str(tmp_path / "faces")), ("model_name_or_path", str(tmp_path / "model")))
    given = dataclasses.replace(options, full=True, own=own)
    result = dynamic_p.run(first(dynamic_p, given, strategy=dynamic_p.ALGORITHM_1), given)
    assert len(result["curves"]["test_accuracy"]) == 2
    assert any(layer.startswith("classifier") for layer in result["updates"]["bias_like"])


@pytest.mark.parametrize("recipe", ["gpt2_lora", "vit_lora"])
def test_a_fine_tuning_recipe(options: Options, monkeypatch: pytest.MonkeyPatch, recipe: str) -> None:
    blocks = ["--block_size", "32", "--max_train_blocks", "64", "--max_validation_blocks", "8"]
    shorter = {"gpt2_lora": blocks, "vit_lora": ["--max_train_images", "64"]}
    few_steps = ["--pretrain_steps", "2", "--max_steps", "12", "--per_device_train_batch_size", "4"]
    monkeypatch.setitem(fine_tuning.QUICK, recipe, [*few_steps, *shorter[recipe]])
    monkeypatch.setenv("XDG_CACHE_HOME", str(options.output_dir / "cache"))
    configuration = first(fine_tuning, options, recipe=recipe, strategy="p 0.6 to 0.5")
    result = fine_tuning.run(configuration, options)
    assert not result["diverged"]
    steps, exponents = zip(*result["curves"]["pdyn/p"], strict=True)
    assert steps[-1] == 12 and exponents[0] > exponents[-1] >= 0.5
    assert fine_tuning.ratio(result) > 0 and math.isfinite(fine_tuning.best_loss(result))
    assert sys.argv[0] != f"{recipe}.py"


@pytest.mark.parametrize("recipe", ["gpt2_lora", "vit_lora"])
def test_a_full_fine_tuning_takes_named_checkpoints(
    options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str
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
    given = dataclasses.replace(options, full=True, own=(("image_folder", str(tmp_path / "faces")),))
    configuration = first(fine_tuning, given, recipe=recipe, strategy="Algorithm 1")
    assert configuration["options"][:2] == ["--model_name_or_path", str(checkpoint)]
    assert ("--image_folder" in configuration["options"]) == (recipe == "vit_lora")
    cut = ["--max_steps", "10", "--per_device_train_batch_size", "4", *shorter]
    result = fine_tuning.run({**configuration, "options": configuration["options"] + cut}, given)
    assert [step for step, _ in result["curves"]["pdyn/p"]] == [5, 10]
    assert math.isfinite(fine_tuning.best_loss(result))


def test_a_recipe_that_refuses_is_no_result(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fine_tuning.QUICK, "gpt2_lora", ["--block_size", "100000", "--pretrain_steps", "2"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(options.output_dir / "cache"))
    with pytest.raises(RecipeError, match="--block_size must not exceed"):
        fine_tuning.run(first(fine_tuning, options, recipe="gpt2_lora"), options)


@pytest.mark.distributed
def test_two_processes_train_together_and_one_writes(tmp_path: Path, options: Options) -> None:
    """The row that one process has, up to float32 sums in another order: 1e-4 after 20 steps."""
    address = ["--nproc_per_node", "2", "--master_port", str(get_free_port())]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "recipes")])
    own = {"PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": "", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    launched = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *address, str(LAUNCHED), str(tmp_path)],
        env=os.environ | ENVIRONMENT | own,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert launched.returncode == 0, launched.stderr[-3000:]
    assert launched.stdout.count("4 of 4 runs to do") == 1
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert [len(json.loads(line)["result"].get("lr_factors", ())) for line in lines] == [0, 2, 0, 0]
    rows = Rows(tmp_path / "rows.jsonl")
    layer, *_ = launched_claim.configurations(options)
    assert rows.of(layer)["hardware"].endswith("2 processes")
    assert rows.of(layer)["result"]["share"] == pytest.approx(path_allocation.run(layer, options)["share"], rel=1e-4)
    fine_tuned = [json.loads(line)["result"] for line in lines[2:]]
    assert [result["diverged"] for result in fine_tuned] == [False, False]
    for result in fine_tuned:
        assert [step for step, _ in result["curves"]["pdyn/p"]] == [5, 10]
    assert fine_tuned[0]["curves"] != fine_tuned[1]["curves"]
