"""Claim 10: claims 4 and 8 on the fine-tuning recipes, GPT-2 and ViT with LoRA, biases, norms (and a new head).

    python recipes/claim.py fine_tuning

Each run is `recipes/gpt2_lora.py` or `recipes/vit_lora.py` with other options. Quick: their small models that need
no network. Full: gpt2 and google/vit-base-patch16-224-in21k from the hub, the latter on the images of --image_folder, a
folder for each class.

The paper's: the claims, and the learning rate 0.1 of the raw sweep. Ours: models, data and all other settings.
"""

import contextlib
import importlib
import io
import itertools
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from _common.entry_point import DivergedError
from hf_pdyn.sweep import statistics
from hf_pdyn.sweep.outcome import ALL_RULE, Outcome, all_of
from papers._claims import figures
from papers._claims.claim import Claim
from papers._claims.options import IMAGE_FOLDER, Options
from papers._claims.processes import from_main_process
from papers._claims.rows import Configuration, Result, Row, chosen
from papers._claims.verdict import Verdict
from papers.allocation._fixed_p import by_p
from papers.allocation.dynamic_p import ALGORITHM_1, BASELINE, FALLING

EXPONENTS = (-0.4, -0.2, 0.0, 0.2, 0.3)
SWEEPS = {"raw": 0.1, "adam": 5e-3}
"""Learning rates of the sweep over p: the paper's larger one, and the recipes' own where updates are matched."""
RECIPES_RATE = 5e-3
MOVING = (*FALLING, ALGORITHM_1)
STRATEGIES: dict[str, list[str]] = {
    BASELINE: [],
    **{name: ["--p_schedule", schedule] for name, schedule in FALLING.items()},
    ALGORITHM_1: ["--p_control", "gradient", "--p_interval", "5"],
}
QUICK: dict[str, list[str]] = {
    "gpt2_lora": ["--max_steps", "40", "--per_device_train_batch_size", "8", "--max_validation_blocks", "48"],
    "vit_lora": ["--num_train_epochs", "3"],
}
HUB = {"gpt2_lora": "gpt2", "vit_lora": "google/vit-base-patch16-224-in21k"}
FACTOR, GAIN = 1.1, 0.01
RULE = f"""For both recipes, raw: the logarithm of G_w/G_b (mean of the last quarter of training) falls with p, and
the best validation loss with both falling p is below that with p = 0.5. Bounds: a factor of {FACTOR:g}, and {GAIN:g}
of loss. {ALL_RULE} {statistics.TREND_RULE} {statistics.EFFECT_RULE}"""


def configurations(given: Options) -> list[Configuration]:
    """The sweep over p and the strategies, raw and matched, for both recipes."""
    sweep = [
        {"p": p, "update_scale": scale, "learning_rate": lr, "strategy": None}
        for scale, lr in SWEEPS.items()
        for p in EXPONENTS
    ]
    moving = [
        {"p": 0.5, "update_scale": scale, "learning_rate": RECIPES_RATE, "strategy": name}
        for scale in SWEEPS
        for name in STRATEGIES
    ]
    return [
        {"size": given.size, "recipe": recipe, **how, "options": _of_size(recipe, given), "seed": seed}
        for recipe in QUICK
        for how in (*sweep, *moving)
        for seed in range(given.seeds)
    ]


def _of_size(recipe: str, given: Options) -> list[str]:
    """What a run of that size asks of the recipe."""
    if not given.full:
        return QUICK[recipe]
    images = ["--image_folder", str(given["image_folder"])] if recipe == "vit_lora" else []
    return ["--model_name_or_path", HUB[recipe], *images]


def options_of(configuration: Configuration, given: Options, folder: str) -> list[str]:
    """What the recipe is called with."""
    strategy = configuration["strategy"]
    options = ["--output_dir", folder, "--seed", str(configuration["seed"])]
    options += ["--optim_args", f"p={configuration['p']},update_scale={configuration['update_scale']}"]
    options += ["--learning_rate", str(configuration["learning_rate"]), "--logging_steps", "5", "--save_strategy", "no"]
    options += ["--report_to", "none", "--disable_tqdm", "true", "--use_cpu", str(given.device == "cpu").lower()]
    options += ["--eval_strategy", "steps", "--eval_steps", "10", "--telemetry", "global"]
    options += STRATEGIES[strategy] if strategy else []
    options += ["--sample_tokens", "0"] if configuration["recipe"] == "gpt2_lora" else []
    return options + configuration["options"]


def run(configuration: Configuration, given: Options) -> Result:
    """Call the recipe, and read what its main process wrote."""
    with tempfile.TemporaryDirectory() as folder:
        diverged = _diverges(configuration["recipe"], options_of(configuration, given, folder))
        curves = from_main_process(lambda: _curves(Path(folder, "trainer_state.json")), given.device)
    return {"diverged": diverged, "curves": curves}


def _curves(state: Path) -> dict[str, list[list[float]]]:
    history = json.loads(state.read_text("utf-8"))["log_history"]
    return {
        name: [[record["step"], float(f"{record[name]:.6g}")] for record in history if record.get(name) is not None]
        for name in ("pdyn/D_w", "pdyn/D_b", "pdyn/p", "eval_loss", "eval_accuracy")
    }


def _diverges(recipe: str, options: Sequence[str]) -> bool:
    """Run a recipe in this process, quietly; RecipeError where it refuses for another reason."""
    # Its `main`, not the script: that ends the process group, which the runs after it need.
    main = importlib.import_module(recipe).main
    said = io.StringIO()
    with _command_line([f"{recipe}.py", *options]), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main()
        except DivergedError:
            return True
    return False


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


def measured(result: Result, name: str) -> np.ndarray:
    """Of every evaluation during training, the step and the number, (2, evaluations)."""
    return np.array(result["curves"][name], float).T


def best_loss(result: Result) -> float:
    """The smallest validation loss during training; NaN for a run that diverged."""
    return float("nan") if result["diverged"] else float(measured(result, "eval_loss")[1].min())


def steps_to(result: Result, loss: float) -> float:
    """The first step with a validation loss as small; infinite if none has."""
    steps, losses = measured(result, "eval_loss")
    return float(steps[losses <= loss].min(initial=np.inf))


def swept(rows: Sequence[Row], recipe: str, scale: str, value: Callable[[Result], float] = ratio) -> np.ndarray:
    """Of the sweep over p, (p, seeds)."""
    return by_p(rows, value, recipe=recipe, update_scale=scale, strategy=None)


def with_strategy(rows: Sequence[Row], recipe: str, scale: str, strategy: str) -> list[Result]:
    """By seed."""
    return [row["result"] for row in chosen(rows, recipe=recipe, update_scale=scale, strategy=strategy)]


def gain(rows: Sequence[Row], recipe: str, scale: str, strategy: str) -> statistics.Mean:
    """In best validation loss below the baseline's, paired by seed."""
    usual, moving = (with_strategy(rows, recipe, scale, name) for name in (BASELINE, strategy))
    return statistics.mean_of([best_loss(one) - best_loss(other) for one, other in zip(usual, moving, strict=True)])


def falls_with_p(rows: Sequence[Row], recipe: str, scale: str) -> Outcome:
    """Whether G_w/G_b does."""
    trend = statistics.trend(EXPONENTS, np.log(swept(rows, recipe, scale)))
    return statistics.effect(trend, math.log(FACTOR), direction=-1)


def judge(rows: Sequence[Row], given: Options) -> Verdict:
    """By RULE."""
    cases = list(itertools.product(QUICK, SWEEPS))
    falls = {case: falls_with_p(rows, *case) for case in cases}
    gains = {(*case, name): gain(rows, *case, name) for case in cases for name in MOVING}
    ends = {case: swept(rows, *case).mean(1)[[0, -1]] for case in cases}
    told = [
        f"{recipe} G_w/G_b {ends[recipe, scale][0]:.3g} to {ends[recipe, scale][1]:.3g} {scale} ({outcome})"
        for (recipe, scale), outcome in falls.items()
    ]
    told += [
        f"{recipe} {name}, {scale}: loss lower by {found} ({statistics.effect(found, GAIN)})"
        for (recipe, scale, name), found in gains.items()
    ]
    return Verdict(
        number=10,
        claim="Fine-tuning with LoRA: G_w/G_b falls with p, and a falling p helps",
        paper="(claims 4 and 8, which the paper tests on other models)",
        measured="; ".join(told),
        verdict=all_of(
            [falls[recipe, "raw"] for recipe in QUICK]
            + [statistics.effect(gains[recipe, "raw", name], GAIN) for recipe in QUICK for name in FALLING]
        ),
        reason=_learned(rows),
        figures={
            f"{recipe}, {scale}": {
                "G_w/G_b": statistics.means_by_p(EXPONENTS, swept(rows, recipe, scale)),
                "best validation loss": statistics.means_by_p(EXPONENTS, swept(rows, recipe, scale, best_loss)),
                "steps to the best loss of p = 0.5": {
                    name: [str(steps) for steps in _steps_to_baseline(rows, recipe, scale, name)] for name in STRATEGIES
                },
            }
            for recipe, scale in cases
        },
    )


def _steps_to_baseline(rows: Sequence[Row], recipe: str, scale: str, strategy: str) -> list[float]:
    usual, moving = (with_strategy(rows, recipe, scale, name) for name in (BASELINE, strategy))
    return [steps_to(other, best_loss(one)) for one, other in zip(usual, moving, strict=True)]


def _learned(rows: Sequence[Row]) -> str:
    """How far training came over the sweep, without which ratios cannot be read."""
    told = []
    for recipe, scale in itertools.product(QUICK, SWEEPS):
        found = swept(rows, recipe, scale, best_loss).mean(1)
        told.append(f"{recipe} {scale} {found[0]:.3g} to {found[-1]:.3g}")
    return f"p decides how far training comes: best validation loss from p=-0.4 to 0.3, {'; '.join(told)}."


def draw(rows: Sequence[Row], given: Options) -> None:
    """G_w/G_b over p, and what each strategy gains, by recipe."""
    with figures.panels(len(QUICK), 2, height=2.6, sharex="col") as (figure, grid):
        for (ratios, bars), recipe in zip(grid, QUICK, strict=True):
            for i, (scale, lr) in enumerate(SWEEPS.items()):
                label = f"{'raw' if scale == 'raw' else 'matched'}, lr = {lr:g}"
                values = swept(rows, recipe, scale).T
                figures.band(ratios, EXPONENTS, values, color=f"C{i}", marker="o", markersize=3, label=label)
                found = [gain(rows, recipe, scale, name) for name in MOVING]
                places = np.arange(len(MOVING)) + 0.4 * i - 0.2
                bars.barh(places, [g.mean for g in found], 0.38, xerr=[g.spread for g in found], color=f"C{i}")
            ratios.set(title=recipe, ylabel="G_w / G_b")
            figures.logarithmic(ratios)
            bars.set_yticks(range(len(MOVING)), MOVING)
            bars.set(title=recipe)
        grid[-1, 0].set_xlabel("p")
        grid[-1, 1].set_xlabel("best validation loss below that of p = 0.5")
        figures.legend(figure)
        figures.save(figure, given.directory / "figure.png")


CLAIM = Claim(__name__, __doc__, RULE, configurations, run, judge, draw, options=(IMAGE_FOLDER,))
