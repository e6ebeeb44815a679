"""Runs of claims 2 and 10, cut short, by a launch of processes: `launched_claim.py DIRECTORY`."""

import sys
from pathlib import Path

from _common.entry_point import run_recipe
from papers._claims.options import Options, world_size
from papers._claims.rows import Configuration, Result, Rows
from papers._claims.sweep import run_all
from papers.allocation import fine_tuning, path_allocation


def configurations(options: Options) -> list[Configuration]:
    layer = path_allocation.configurations(options)[0]
    recipe = next(c for c in fine_tuning.configurations(options) if c["strategy"] == "Algorithm 1")
    # Twice the same recipe: the second finds the process group of the first.
    return [{**layer, "steps": 20}, recipe, {**recipe, "seed": 1}]


def run(configuration: Configuration, options: Options) -> Result:
    return (fine_tuning if "recipe" in configuration else path_allocation).run(configuration, options)


def main() -> None:
    folder = Path(sys.argv[1])
    assert world_size() == 2
    blocks = ["--block_size", "32", "--max_train_blocks", "64", "--max_validation_blocks", "8"]
    fine_tuning.QUICK = {"gpt2_lora": ["--pretrain_steps", "2", "--max_steps", "10", *blocks]}
    fine_tuning.INTERVAL = 5
    own = (("recipes", "gpt2_lora"),)
    options = Options(full=False, device="cpu", seeds=3, jobs=1, output_dir=folder, claim="launched", own=own)
    run_all(configurations(options), run, Rows(folder / "rows.jsonl"), options, "launched")


if __name__ == "__main__":
    run_recipe(main)
