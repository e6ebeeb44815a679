"""Losses of full runs of both recipes with moments in every format: `python -m benchmarks.format_losses`.

Adds the runs that `format-losses.jsonl` lacks and prints what the rule makes of all. With `--seconds N`, no run begins
later than that; the next call goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import FOLDER
from hf_pdyn.sweep.rows import Configuration, Rows, versions
from hf_pdyn.sweep.statistics import Mean, difference, mean_of

RULE = """Paired by seed, the last validation loss in a format less that in fp32, at the same recipe and p. A format
is as good as fp32 where the 95 % interval of the mean difference (Student's t, 5 seeds) lies within one standard
deviation, between seeds, of fp32's loss on both sides of zero; else it differs where the interval leaves out zero,
and is undecided where it does not. Of ViT at p = 1/2, which five seeds left undecided, 20 other seeds are judged by the
same rule, alone: the first five had been seen when they were added."""

RECIPES: dict[str, tuple[str, ...]] = {
    "gpt2_lora": ("--block_size", "64", "--max_steps", "320", "--sample_tokens", "0"),
    "vit_lora": ("--num_train_epochs", "10"),
}
"""What each run is told beside p, format and seed: the recipe's own settings but for these."""

COMMON = (
    *("--learning_rate", "5e-3", "--telemetry", "none", "--eval_strategy", "no", "--eval_on_start", "false"),
    *("--save_strategy", "no", "--report_to", "none", "--disable_tqdm", "true", "--logging_steps", "50"),
)
EXPONENTS = (0.25, 0.5)
FORMATS = ("fp32", "16bit", "8_16bit")
SEEDS = (1, 2, 3, 4, 5)
FURTHER = {("vit_lora", 0.5): tuple(range(6, 26))}
"""Seeds of what five left undecided."""
ROWS = FOLDER / "format-losses.jsonl"


def configurations() -> Iterator[Configuration]:
    """Seeds outermost, so that what is there after a while is of all arms."""
    arms = [(recipe, p) for recipe in RECIPES for p in EXPONENTS]
    yield from (_configuration(*arm, state_dtype, seed) for seed in SEEDS for arm in arms for state_dtype in FORMATS)
    for arm, seeds in FURTHER.items():
        yield from (_configuration(*arm, state_dtype, seed) for seed in seeds for state_dtype in FORMATS)


def _configuration(recipe: str, p: float, state_dtype: str, seed: int) -> Configuration:
    words = [*RECIPES[recipe], *COMMON]
    return {"recipe": recipe, "p": p, "state_dtype": state_dtype, "seed": seed, "words": words}


def run(of: Configuration) -> dict[str, Any]:
    """The last validation loss of one run of a recipe, in this process."""
    sys.path.insert(0, str(FOLDER.parent / "recipes"))
    recipe = importlib.import_module(of["recipe"])
    given = sys.argv
    with tempfile.TemporaryDirectory() as folder, Path(folder, "output").open("w") as output:
        optim_args = f"p={of['p']:g},update_scale=adam,state_dtype={of['state_dtype']}"
        sys.argv = [of["recipe"], *of["words"], "--optim_args", optim_args, "--seed", str(of["seed"])]
        sys.argv += ["--output_dir", folder]
        try:
            with contextlib.redirect_stdout(output):
                recipe.main()
        finally:
            sys.argv = given
            sys.path.pop(0)
        history = json.loads(Path(folder, "trainer_state.json").read_text())["log_history"]
    losses = [record["eval_loss"] for record in history if "eval_loss" in record]
    return {"eval_loss": losses[-1]}


def compared(rows: Rows) -> Iterator[dict[str, Any]]:
    """What the rule says of every recipe, p and format but fp32 whose runs are all there."""
    losses: dict[tuple[str, float, tuple[int, ...], str], list[float]] = {}
    for of in configurations():
        row = rows.of(of)
        if row is not None:
            recipe, p, seed = of["recipe"], of["p"], of["seed"]
            seeds = SEEDS if seed in SEEDS else FURTHER[recipe, p]
            losses.setdefault((recipe, p, seeds, of["state_dtype"]), []).append(row["result"]["eval_loss"])
    for (recipe, p, seeds, state_dtype), values in losses.items():
        reference = losses.get((recipe, p, seeds, "fp32"), [])
        if state_dtype != "fp32" and len(values) == len(reference) == len(seeds):
            settings = {"recipe": recipe, "p": p, "state_dtype": state_dtype, "seeds": seeds}
            yield {**settings, **judged(values, reference)}


def judged(values: Sequence[float], reference: Sequence[float]) -> dict[str, Any]:
    """The difference of two lists of losses, paired, and what RULE says of it."""
    found, spread = mean_of([ours - theirs for ours, theirs in zip(values, reference, strict=True)]), mean_of(reference)
    outcome = difference(found, spread.spread).name
    verdict = {"NO_EFFECT": "as good as fp32", "CONFIRMED": "differs"}.get(outcome, "undecided")
    return {"reference": spread, "difference": found, "verdict": verdict}


def table(found: Iterable[Mapping[str, Any]]) -> str:
    """For docs/speed.md."""
    lines = ["| recipe | p | moments | seeds | loss in fp32 | difference, 95 % interval | rule |", "|---" * 7 + "|"]
    for row in found:
        of_fp32: Mean = row["reference"]
        low, high = row["difference"].interval
        lines.append(
            f"| {row['recipe']} | {row['p']:g} | `{row['state_dtype']}` | {row['seeds'][0]} to {row['seeds'][-1]} | "
            f"{of_fp32.mean:.4f} ± {of_fp32.spread:.4f} | "
            f"{row['difference'].mean:+.4f} [{low:+.4f}, {high:+.4f}] | {row['verdict']} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no run later than that")
    parser.add_argument("--rows", type=Path, default=ROWS)
    options = parser.parse_args(arguments)
    begun = time.perf_counter()
    rows = Rows(options.rows)
    with rows.locked():
        for of in configurations():
            if rows.of(of) is None and time.perf_counter() - begun < options.seconds:
                start = time.perf_counter()
                rows.append(of, run(of), time.perf_counter() - start, versions=versions())
                print(f"{of['recipe']}, p={of['p']:g}, {of['state_dtype']}, seed {of['seed']}", flush=True)
    print(f"{RULE}\n\n{table(compared(rows))}")


if __name__ == "__main__":
    main()
