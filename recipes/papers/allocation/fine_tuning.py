"""Claim 10: p fixed, steered and at random on the fine-tuning recipes: LoRA, biases and norms of GPT-2 and ViT.

    python recipes/claim.py fine_tuning
    python recipes/claim.py fine_tuning --device cuda --jobs 8

Each run is `recipes/gpt2_lora.py` or `recipes/vit_lora.py` for 500 steps, with update_scale=adam: p fixed at 0, 0.25
and 0.5; Algorithm 1; control by target, which holds U_w/U_b as it is at the first decision; and decisions at random, of
Algorithm 1's number and step size. Quick: the recipes' small models that need no network. Full: gpt2 and
google/vit-base-patch16-224-in21k from the hub, the latter on the images of --image_folder, a folder for each class.

The paper's: claims 4 and 8, on other models. Ours: models, data and all settings.
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

from _common.entry_point import DivergedError, RecipeError
from hf_pdyn.sweep import statistics
from hf_pdyn.sweep.outcome import ALL_RULE, CONFIRMED, INCONCLUSIVE, NO_EFFECT, Outcome, all_of
from papers._claims import figures, paired
from papers._claims.claim import Claim
from papers._claims.options import IMAGE_FOLDER, Option, Options
from papers._claims.processes import from_main_process
from papers._claims.rows import Configuration, Result, Row, chosen
from papers._claims.verdict import Part, Verdict
from papers.allocation._exponents import ALGORITHM_1, RANDOM_SIGNS, random_signs

EXPONENTS = (0.0, 0.25, 0.5)
BASELINE = "p = 0.5"
FIXED = {f"p = {p:g}": p for p in EXPONENTS}
TARGET = "control by target"
STRATEGIES = (*FIXED, ALGORITHM_1, TARGET, RANDOM_SIGNS)
STEPS, INTERVAL = 500, 25
"""Optimizer steps of a training, and between decisions: twenty, as `--p_interval auto` has it."""
RATE = 5e-3
"""The recipes' own."""
QUICK: dict[str, list[str]] = {
    "gpt2_lora": ["--max_steps", str(STEPS), "--max_validation_blocks", "96"],
    "vit_lora": ["--max_steps", str(STEPS), "--validation_fraction", "0.5"],
}
HUB = {"gpt2_lora": "gpt2", "vit_lora": "google/vit-base-patch16-224-in21k"}
RECIPES = Option("recipes", "of gpt2_lora and vit_lora those to run and judge", str, *[",".join(QUICK)] * 2)
FACTOR, GAIN = 1.1, 0.01
RULE = f"""For both recipes, the update scale matched: the logarithm of G_w/G_b (mean of the last quarter of training)
falls with p over 0, 0.25 and 0.5, and the best validation loss with Algorithm 1 is below that with p = 0.5. Bounds: a
factor of {FACTOR:g}, and {GAIN:g} of loss. Parts, for each recipe, by the same bound of loss. fixed p: the best
validation loss moves with p, either way. Algorithm 1 against p = 0, p = 0.25, control by target, and random signs: its
loss is below theirs; one part each. {ALL_RULE} A trend is the change from the first setting to the last along each
seed's own least-squares line. {paired.PAIRED_RULE}"""


def configurations(given: Options) -> list[Configuration]:
    """Every strategy for both recipes, seed by seed."""
    return [
        {"size": given.size, "recipe": recipe, "strategy": strategy, "p": FIXED.get(strategy, 0.5)}
        | {"update_scale": "adam", "learning_rate": RATE, "options": _of_size(recipe, given), "seed": seed}
        for seed in range(given.seeds)
        for recipe in recipes(given)
        for strategy in STRATEGIES
    ]


def recipes(given: Options) -> list[str]:
    """Those that are run and judged."""
    found = given["recipes"].split(",")
    if not set(found) <= QUICK.keys():
        raise RecipeError(f"--recipes must be of {', '.join(QUICK)}, with a comma between, got {given['recipes']!r}")
    return found


def _of_size(recipe: str, given: Options) -> list[str]:
    """What a run of that size asks of the recipe."""
    if not given.full:
        return QUICK[recipe]
    images = ["--image_folder", str(given["image_folder"])] if recipe == "vit_lora" else []
    return ["--model_name_or_path", HUB[recipe], "--max_steps", str(STEPS), *images]


def options_of(configuration: Configuration, given: Options, folder: str) -> list[str]:
    """What the recipe is called with."""
    options = ["--output_dir", folder, "--seed", str(configuration["seed"])]
    options += ["--optim_args", f"p={configuration['p']},update_scale={configuration['update_scale']}"]
    options += ["--learning_rate", str(configuration["learning_rate"]), "--logging_steps", str(INTERVAL)]
    options += ["--save_strategy", "no", "--report_to", "none", "--disable_tqdm", "true"]
    options += ["--use_cpu", str(given.device == "cpu").lower(), "--telemetry", "global"]
    options += ["--eval_strategy", "steps", "--eval_steps", str(2 * INTERVAL)]
    options += _of_strategy(configuration["strategy"], configuration["seed"])
    options += ["--sample_tokens", "0"] if configuration["recipe"] == "gpt2_lora" else []
    return options + configuration["options"]


def _of_strategy(strategy: str, seed: int) -> list[str]:
    if strategy == ALGORITHM_1:
        return ["--p_control", "gradient", "--p_interval", str(INTERVAL)]
    if strategy == TARGET:
        return ["--p_control", "target", "--p_target", "update_ratio=hold", "--p_interval", str(INTERVAL)]
    if strategy == RANDOM_SIGNS:
        return ["--p_schedule", random_signs(0.5, seed, decisions=STEPS // INTERVAL - 1, interval=INTERVAL)]
    return []


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
    """The step and the number of every evaluation during training, (2, evaluations)."""
    return np.array(result["curves"][name], float).T


def best_loss(result: Result) -> float:
    """The smallest validation loss during training; NaN for a run that diverged."""
    return float("nan") if result["diverged"] else float(measured(result, "eval_loss")[1].min())


def last_loss(result: Result) -> float:
    """The last validation loss during training; NaN for a run that diverged."""
    return float("nan") if result["diverged"] else float(measured(result, "eval_loss")[1][-1])


def last_p(result: Result) -> float:
    """p at the end."""
    return float(measured(result, "pdyn/p")[1][-1])


def results(rows: Sequence[Row], recipe: str, strategy: str) -> list[Result]:
    """By seed."""
    return [row["result"] for row in chosen(rows, recipe=recipe, strategy=strategy)]


def fixed(rows: Sequence[Row], recipe: str, value: Callable[[Result], float]) -> np.ndarray:
    """A value of the fixed p, (p, seeds)."""
    return np.array([[value(result) for result in results(rows, recipe, name)] for name in FIXED])


def changes(of_p: np.ndarray) -> np.ndarray:
    """From the first p to the last along each seed's line; of_p: (p, seeds)."""
    return statistics.slopes(EXPONENTS, of_p) * (EXPONENTS[-1] - EXPONENTS[0])


def below(rows: Sequence[Row], recipe: str, one: str, other: str) -> np.ndarray:
    """By how much the best validation loss of one strategy is below that of another, seed by seed."""
    pairs = zip(results(rows, recipe, one), results(rows, recipe, other), strict=True)
    return np.array([best_loss(b) - best_loss(a) for a, b in pairs])


def falls_with_p(rows: Sequence[Row], recipe: str) -> Outcome:
    """Whether G_w/G_b does."""
    return paired.effect(changes(np.log(fixed(rows, recipe, ratio))), math.log(FACTOR), direction=-1)


def judge(rows: Sequence[Row], given: Options) -> Verdict:
    """By RULE."""
    of = recipes(given)
    falls = {recipe: falls_with_p(rows, recipe) for recipe in of}
    gains = {recipe: below(rows, recipe, ALGORITHM_1, BASELINE) for recipe in of}
    outcomes = {recipe: paired.effect(found, GAIN) for recipe, found in gains.items()}
    ends = {recipe: fixed(rows, recipe, ratio).mean(1)[[0, -1]] for recipe in of}
    told = [
        f"{recipe} G_w/G_b {ends[recipe][0]:.3g} with p = 0, {ends[recipe][1]:.3g} with 0.5 ({falls[recipe]})"
        for recipe in of
    ]
    told += [
        f"{recipe} loss lower by {statistics.mean_of(gains[recipe])} with Algorithm 1 ({outcomes[recipe]})"
        for recipe in of
    ]
    return Verdict(
        number=10,
        claim="Fine-tuning with LoRA: G_w/G_b falls with p, and Algorithm 1 helps",
        paper="(claims 4 and 8, which the paper tests on other models)",
        measured="; ".join(told),
        verdict=all_of([*falls.values(), *outcomes.values()]),
        reason=_learned(rows, of),
        parts=_parts(rows, of),
        figures={
            f"{recipe}, {strategy}": {
                "best validation loss": str(_mean(rows, recipe, strategy, best_loss)),
                "last validation loss": str(_mean(rows, recipe, strategy, last_loss)),
                "G_w/G_b": str(_mean(rows, recipe, strategy, ratio)),
                "last p": str(_mean(rows, recipe, strategy, last_p)),
            }
            for recipe, strategy in itertools.product(of, STRATEGIES)
        },
    )


def _parts(rows: Sequence[Row], of: Sequence[str]) -> dict[str, Part]:
    moved = {recipe: changes(fixed(rows, recipe, best_loss)) for recipe in of}
    told = ", ".join(f"{recipe} {statistics.mean_of(found)}" for recipe, found in moved.items())
    found = {
        "fixed p": Part(
            _some([paired.difference(found, GAIN) for found in moved.values()]), f"loss from 0 to 0.5: {told}"
        )
    }
    for other in STRATEGIES:
        if other in (BASELINE, ALGORITHM_1):
            continue
        less = {recipe: below(rows, recipe, ALGORITHM_1, other) for recipe in of}
        outcomes = {recipe: paired.effect(found, GAIN) for recipe, found in less.items()}
        told = ", ".join(f"{recipe} {statistics.mean_of(found)} ({outcomes[recipe]})" for recipe, found in less.items())
        found[f"Algorithm 1 against {other}"] = Part(all_of(outcomes.values()), f"loss lower by: {told}")
    return found


def _some(outcomes: Sequence[Outcome]) -> Outcome:
    """The outcome of an effect that is looked for in either recipe."""
    return next(one for one in (CONFIRMED, INCONCLUSIVE, NO_EFFECT) if one in outcomes)


def _mean(rows: Sequence[Row], recipe: str, strategy: str, value: Callable[[Result], float]) -> statistics.Mean:
    return statistics.mean_of([value(result) for result in results(rows, recipe, strategy)])


def _learned(rows: Sequence[Row], of: Sequence[str]) -> str:
    """How far training came, without which nothing else can be read."""
    told = []
    for recipe in of:
        found = results(rows, recipe, BASELINE)
        first = np.mean([measured(result, "eval_loss")[1][0] for result in found])
        best = np.mean([best_loss(result) for result in found])
        told.append(f"{recipe} {first:.3g} to {best:.3g}")
    return f"Validation loss with p = 0.5, before training and at its best: {', '.join(told)}."


def draw(rows: Sequence[Row], given: Options) -> None:
    """Validation loss over steps, p over steps, and what each strategy gains, by recipe."""
    of = recipes(given)
    colours = dict(zip(STRATEGIES, [*figures.colours(len(FIXED)), "C3", "C1", "0.5"], strict=True))
    with figures.panels(len(of), 3, height=2.5) as (figure, grid):
        for (losses, exponents, bars), recipe in zip(grid, of, strict=True):
            for place, strategy in enumerate(STRATEGIES):
                found = results(rows, recipe, strategy)
                style = {"color": colours[strategy], "label": strategy}
                # Without the loss before training, beside which all differences look small.
                for axes, name, start in ((losses, "eval_loss", 1), (exponents, "pdyn/p", 0)):
                    if not any(result["diverged"] for result in found):
                        curves = [measured(result, name) for result in found]
                        axes.plot(curves[0][0][start:], np.mean([curve[1] for curve in curves], 0)[start:], **style)
                if strategy != BASELINE:
                    gain = statistics.mean_of(below(rows, recipe, strategy, BASELINE))
                    low, high = gain.interval
                    bars.barh(
                        place, gain.mean, 0.6, xerr=[[gain.mean - low], [high - gain.mean]], color=colours[strategy]
                    )
            losses.set(title=f"{recipe}: validation loss")
            exponents.set(title="p")
            bars.set(title="best loss below p = 0.5")
            bars.locator_params(axis="x", nbins=3)
            bars.set_yticks(*zip(*((i, name) for i, name in enumerate(STRATEGIES) if name != BASELINE), strict=True))
            bars.axvline(0, color="0.3", linewidth=0.8)
        for axes, label in zip(grid[-1], ("step", "step", "loss"), strict=True):
            axes.set_xlabel(label)
        figures.legend(figure, columns=3)
        figures.save(figure, given.directory / "figure.png")


CLAIM = Claim(
    __name__,
    __doc__,
    RULE,
    configurations,
    run,
    judge,
    draw,
    options=(IMAGE_FOLDER, RECIPES),
    seeds=paired.FEWEST_SEEDS,
)
