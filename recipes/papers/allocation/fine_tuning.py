"""Claim 10: claims 4 and 8 on the fine-tuning recipes, GPT-2 and ViT with LoRA, biases, norms (and a new head).

    python recipes/papers/allocation/fine_tuning.py

Each run is `recipes/gpt2_lora.py` or `recipes/vit_lora.py` with other options. Quick: their small models that need
no network. Full: gpt2 and google/vit-base-patch16-224-in21k from the hub, the latter on the images of --image_folder, a
folder for each class.
"""

import contextlib
import io
import json
import runpy
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

import _recipes_on_path  # noqa: F401
from _claims import figures, statistics
from _claims.claim import Claim
from _claims.options import Options
from _claims.rows import Configuration, Result, Row
from _claims.verdict import Verdict

NAME = "fine_tuning"
RECIPES = Path(__file__).resolve().parents[2]
EXPONENTS = (-0.4, -0.2, 0.0, 0.2, 0.3)
SWEEPS = {"raw": 0.1, "adam": 5e-3}
"""Learning rates of the sweep over p: the paper's larger one, and the recipes' own where updates are matched."""
BASELINE = "p = 0.5"
STRATEGIES: dict[str, list[str]] = {
    BASELINE: [],
    "p 0.45 to 0.35": ["--p_schedule", "linear:0.45..0.35"],
    "p 0.6 to 0.5": ["--p_schedule", "linear:0.6..0.5"],
    "Algorithm 1": ["--p_control", "gradient", "--p_interval", "5"],
}
FALLING = ("p 0.45 to 0.35", "p 0.6 to 0.5")
QUICK: dict[str, list[str]] = {
    "gpt2_lora": ["--max_steps", "40", "--per_device_train_batch_size", "8", "--max_validation_blocks", "48"],
    "vit_lora": ["--num_train_epochs", "3"],
}
HUB = {"gpt2_lora": "gpt2", "vit_lora": "google/vit-base-patch16-224-in21k"}
RULE = (
    "confirmed where, for both recipes, G_w/G_b (mean of the last quarter of training) falls with p, raw, and both "
    f"falling p have a smaller best validation loss than p = 0.5 by more than {statistics.STANDARD_ERRORS:g} "
    "standard errors of the difference, paired by seed; not confirmed where a ratio does not fall, or a mean "
    f"difference is not below zero; else inconclusive. {statistics.TREND_RULE}"
)


def configurations(given: Options) -> list[Configuration]:
    """The sweep over p, raw and matched, and the strategies, for both recipes."""
    sweep = [
        {"p": p, "update_scale": scale, "learning_rate": lr, "strategy": None}
        for scale, lr in SWEEPS.items()
        for p in EXPONENTS
    ]
    moving = [{"p": 0.5, "update_scale": "raw", "learning_rate": 5e-3, "strategy": name} for name in STRATEGIES]
    return [
        {
            "size": given.size,
            "recipe": recipe,
            "data": given.image_folder if given.full else "embedded",
            **how,
            "seed": seed,
        }
        for recipe in QUICK
        for how in (*sweep, *moving)
        for seed in range(given.seeds)
    ]


def options_of(configuration: Configuration, given: Options, folder: str) -> list[str]:
    """What the recipe is called with."""
    recipe, strategy = configuration["recipe"], configuration["strategy"]
    options = ["--output_dir", folder, "--seed", str(configuration["seed"])]
    options += ["--optim_args", f"p={configuration['p']},update_scale={configuration['update_scale']}"]
    options += ["--learning_rate", str(configuration["learning_rate"]), "--logging_steps", "5", "--save_strategy", "no"]
    options += ["--report_to", "none", "--disable_tqdm", "true", "--use_cpu", str(given.device == "cpu").lower()]
    options += ["--eval_strategy", "steps", "--eval_steps", "10", "--telemetry", "global"]
    options += STRATEGIES[strategy] if strategy else []
    options += ["--sample_tokens", "0"] if recipe == "gpt2_lora" else []
    if not given.full:
        return options + QUICK[recipe]
    options += ["--model_name_or_path", HUB[recipe]]
    return options + (["--image_folder", given.image_folder] if recipe == "vit_lora" else [])


def run(configuration: Configuration, given: Options) -> Result:
    """Call the recipe, and read what it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        failure = _call(configuration["recipe"], options_of(configuration, given, folder))
        if failure and "diverged" not in failure:
            raise RuntimeError(f"{configuration['recipe']} failed: {failure}")
        history = json.loads(Path(folder, "trainer_state.json").read_text("utf-8"))["log_history"]
    curves = {
        name: [[record["step"], float(f"{record[name]:.6g}")] for record in history if record.get(name) is not None]
        for name in ("pdyn/D_w", "pdyn/D_b", "pdyn/p", "eval_loss", "eval_accuracy")
    }
    return {"diverged": bool(failure), "curves": curves}


def _call(recipe: str, options: Sequence[str]) -> str:
    """Run a recipe in this process; return what it failed with, if it did."""
    said = io.StringIO()
    with _command_line([f"{recipe}.py", *options]), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            runpy.run_path(str(RECIPES / f"{recipe}.py"), run_name="__main__")
        except SystemExit as end:
            return said.getvalue().strip()[-2000:] if end.code else ""
    return ""


@contextlib.contextmanager
def _command_line(arguments: list[str]) -> Iterator[None]:
    before, sys.argv = sys.argv, arguments
    try:
        yield
    finally:
        sys.argv = before


def ratio(result: Result) -> float:
    """G_w/G_b over the last quarter of training; NaN for a run that diverged."""
    if result["diverged"]:
        return float("nan")
    weights, biases = (np.array([value for _, value in result["curves"][name]]) for name in ("pdyn/D_w", "pdyn/D_b"))
    last = -max(len(weights) // 4, 1)
    return float(weights[last:].mean() / biases[last:].mean())


def best_loss(result: Result) -> float:
    """The smallest validation loss during training."""
    return min(value for _, value in result["curves"]["eval_loss"])


def swept(rows: Sequence[Row], recipe: str, scale: str) -> np.ndarray:
    """G_w/G_b, (p, seeds)."""
    wanted = {"recipe": recipe, "update_scale": scale, "strategy": None}
    found = [row for row in rows if wanted.items() <= row["configuration"].items()]
    return np.array([[ratio(r["result"]) for r in found if r["configuration"]["p"] == p] for p in EXPONENTS])


def gain(rows: Sequence[Row], recipe: str, strategy: str) -> statistics.Mean:
    """In best validation loss below the baseline's, paired by seed."""

    def losses(name: str) -> np.ndarray:
        wanted = {"recipe": recipe, "strategy": name}
        return np.array([best_loss(r["result"]) for r in rows if wanted.items() <= r["configuration"].items()])

    return statistics.mean_of((losses(BASELINE) - losses(strategy)).tolist())


def verdict_on_gain(found: statistics.Mean) -> str:
    """By RULE, of one strategy of one recipe."""
    if found.mean <= 0:
        return statistics.NOT_CONFIRMED
    return statistics.CONFIRMED if statistics.differs(found) else statistics.INCONCLUSIVE


def judge(rows: Sequence[Row], given: Options) -> Verdict:
    """By RULE."""
    trends = {(recipe, scale): statistics.trend(swept(rows, recipe, scale)) for recipe in QUICK for scale in SWEEPS}
    gains = {(recipe, name): gain(rows, recipe, name) for recipe in QUICK for name in list(STRATEGIES)[1:]}
    ends = {key: swept(rows, *key).mean(1)[[0, -1]] for key in trends}
    told = [
        f"{recipe} G_w/G_b {ends[recipe, scale][0]:.3g} to {ends[recipe, scale][1]:.3g} {scale} ({trend.verdict(-1)})"
        for (recipe, scale), trend in trends.items()
    ]
    told += [f"{recipe} {name}: loss lower by {found}" for (recipe, name), found in gains.items()]
    return Verdict(
        number=10,
        claim="Fine-tuning with LoRA: G_w/G_b falls with p, and a falling p helps",
        paper="(claims 4 and 8, which the paper tests on other models)",
        rule=RULE,
        measured="; ".join(told),
        verdict=statistics.all_of(
            [trends[recipe, "raw"].verdict(-1) for recipe in QUICK]
            + [verdict_on_gain(gains[recipe, name]) for recipe in QUICK for name in FALLING]
        ),
        seeds=given.seeds,
        size=given.size,
        figures={
            f"{recipe}, {scale}": statistics.means_by_p(EXPONENTS, swept(rows, recipe, scale))
            for recipe, scale in trends
        },
    )


def draw(rows: Sequence[Row], given: Options) -> None:
    """G_w/G_b over p, and what each strategy gains, by recipe."""
    with figures.panels(len(QUICK), 2) as (figure, grid):
        for (ratios, bars), recipe in zip(grid, QUICK, strict=True):
            for i, (scale, lr) in enumerate(SWEEPS.items()):
                label = f"{'raw' if scale == 'raw' else 'matched'}, lr = {lr:g}"
                values = swept(rows, recipe, scale).T
                figures.band(ratios, EXPONENTS, values, color=f"C{i}", marker="o", markersize=3, label=label)
            ratios.set(title=recipe, xlabel="p", ylabel="G_w / G_b", yscale="log")
            ratios.legend()
            names = list(STRATEGIES)[1:]
            found = [gain(rows, recipe, name) for name in names]
            bars.barh(range(len(names)), [g.mean for g in found], xerr=[g.spread for g in found])
            bars.set_yticks(range(len(names)), names)
            bars.set(title="best validation loss below that of p = 0.5")
        figures.save(figure, given.directory / "figure.png")


CLAIM = Claim(NAME, __doc__, configurations, run, judge, draw, full_needs=("image_folder",))

if __name__ == "__main__":
    CLAIM.main()
