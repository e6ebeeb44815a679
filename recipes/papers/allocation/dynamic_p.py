"""Claim 8: p that moves while fine-tuning beats p = 0.5, and sooner (IAD 4.2, Fig. 6; predictions 3-5).

    python recipes/papers/allocation/dynamic_p.py
    accelerate launch recipes/papers/allocation/dynamic_p.py --full --device cuda --image_folder RAF-DB

A pretrained backbone with a new head is fine-tuned with p fixed at 0.5, falling from 0.45 to 0.35 and from 0.6 to
0.5, steered by Algorithm 1, and fixed at 0.5 with a learning rate whose factor in every epoch gives the mean update
size that each of the two falling p had: what a learning rate could have done instead. Quick: a small ResNet
pretrained on scikit-learn's digits 0 to 4, fine-tuned on a tenth of the digits 5 to 9. Full: --model_name_or_path on a
directory of images in train/ and test/ (or val/), a folder for each class, as RAF-DB and AffectNet have them.
"""

import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageClassification, set_seed

import _recipes_on_path  # noqa: F401
from _claims import figures, statistics
from _claims.claim import Claim
from _claims.images import Images, embedded_digits, image_folders
from _claims.networks import SMALL, resnet
from _claims.options import Options
from _claims.rows import Configuration, Result, Row
from _claims.training import Optimization, train
from _claims.verdict import Verdict
from _common.heads import with_new_head
from _common.run import loading
from _fixed_p import ROWS

NAME = "dynamic_p"
BASELINE = "p = 0.5"
FALLING = {"p 0.45 to 0.35": "linear:0.45..0.35", "p 0.6 to 0.5": "linear:0.6..0.5"}
FULL_NEEDS = ("image_folder", "model_name_or_path")
ALGORITHM_1 = "Algorithm 1"
MATCHED = {f"lr matched to {name}": name for name in FALLING}
STRATEGIES = (BASELINE, *FALLING, ALGORITHM_1, *MATCHED)
APART = 0.1
TEST_SHARE = 0.9
MATCHING_ROUNDS = 4
RULE = (
    "confirmed where both falling p have a higher best accuracy than p = 0.5, by more than "
    f"{statistics.STANDARD_ERRORS:g} standard errors of the difference, paired by seed; not confirmed where the mean "
    "difference of one is not above zero; else inconclusive"
)
RULES = {
    "faster": "confirmed where p from 0.6 to 0.5 reaches the baseline's best accuracy with every seed, in at most "
    "half of its epochs in the mean; not confirmed where it needs as many or more, or misses it with most seeds; "
    "else inconclusive",
    "prediction 3": "D_w and D_b change in opposite directions (baseline): confirmed where the share of such epochs "
    f"exceeds {APART:g} by more than {statistics.STANDARD_ERRORS:g} standard errors, not confirmed where its mean "
    "does not exceed it, else inconclusive",
    "prediction 4": "confirmed where the mean log of weight over bias-like update norms differs between both falling "
    "p and the learning rates matched to them, and between Algorithm 1 and the baseline, each by more than "
    f"{statistics.STANDARD_ERRORS:g} standard errors, paired by seed; else not confirmed",
    "prediction 5": "confirmed where, between a falling p and the learning rate matched to it, the epoch around which "
    "update norms centre moves the same way for normalisation and for the head's bias with both falling p, each by "
    f"more than {statistics.STANDARD_ERRORS:g} standard errors; else not confirmed",
}


def optimization(given: Options, strategy: str, update_scale: str = "raw") -> Optimization:
    """A strategy without a matched learning rate, whose factors are known only once the others have run."""
    return Optimization(
        p=0.5,
        lr=1e-4 if given.full else 1e-3,
        update_scale=update_scale,
        eps=1e-16,  # Adam's 1e-8, outside of the root
        epochs=20,
        batch_size=64 if given.full else 10,
        p_schedule=FALLING.get(strategy),
        p_control=strategy == ALGORITHM_1,
    )


def configurations(given: Options, update_scale: str = "raw") -> list[Configuration]:
    """Every strategy and seed."""
    size: Configuration = (
        {"data": given.image_folder, "model": given.model_name_or_path}
        if given.full
        else {"data": "digits 5 to 9", "test_share": TEST_SHARE, "model": "pretrained on digits 0 to 4"}
    )
    return [
        {"size": given.size, **size, "strategy": strategy}
        | {**dataclasses.asdict(optimization(given, strategy, update_scale)), "seed": seed}
        for strategy in STRATEGIES
        for seed in range(given.seeds)
    ]


def run(configuration: Configuration, given: Options) -> Result:
    """Fine-tune once; for a matched learning rate until updates have the size that they had with a falling p."""
    strategy, seed, scale = (configuration[name] for name in ("strategy", "seed", "update_scale"))
    baseline = optimization(given, BASELINE, scale)
    if strategy not in MATCHED:
        return _fine_tune(optimization(given, strategy, scale), seed, given)
    wanted = _update_sizes(_fine_tune(optimization(given, MATCHED[strategy], scale), seed, given))
    usual = _update_sizes(_fine_tune(baseline, seed, given))
    factors, closest = wanted / usual, np.inf
    for _ in range(MATCHING_ROUNDS):  # other steps lead elsewhere, where gradients have another size
        result = _fine_tune(dataclasses.replace(baseline, lr_factors=tuple(factors.tolist())), seed, given)
        reached = _update_sizes(result) / wanted
        off = float(np.abs(reached - 1).max())
        if not off >= closest:  # NaN, where training diverged, is what there is
            closest, best = off, {**result, "lr_factors": factors.tolist(), "matched_within": off}
        factors = factors / reached
    return best


def _update_sizes(result: Result) -> np.ndarray:
    """The mean update norm over all parameters, by epoch."""
    curves = result["curves"]
    return np.hypot(np.array(curves["update_w"], float), np.array(curves["update_b"], float))


def _fine_tune(how: Optimization, seed: int, given: Options) -> Result:
    images = _images(given)
    model = _pretrained(given, seed)
    set_seed(seed)
    names = tuple(str(i) for i in range(images.classes))
    result = train(with_new_head(model, names), images, how, seed, given.device, update_every=1)
    return {key: value for key, value in result.items() if key not in ("layers", "hard")}


@functools.cache
def _images(given: Options) -> Images:
    if not given.full:
        return embedded_digits(range(5, 10), TEST_SHARE)
    with loading(given.model_name_or_path, "an image classification model with its image processor"):
        processor = AutoImageProcessor.from_pretrained(given.model_name_or_path)
    return image_folders(given.image_folder, processor)


def _pretrained(given: Options, seed: int) -> nn.Module:
    if not given.full:
        return copy.deepcopy(_pretrained_on_digits(seed, given.device))
    with loading(given.model_name_or_path, "an image classification model with its image processor"):
        return AutoModelForImageClassification.from_pretrained(given.model_name_or_path)


@functools.cache
def _pretrained_on_digits(seed: int, device: str) -> nn.Module:
    images = embedded_digits(range(5), 0.2)
    set_seed(seed)
    model = resnet(SMALL, images.channels, images.classes)
    train(model, images, Optimization(p=0.5, lr=1e-3, eps=1e-16, epochs=10, batch_size=50), seed, device)
    return model.to(torch.device("cpu"))


def results(rows: Sequence[Row], strategy: str) -> list[Result]:
    """Of a strategy, by seed."""
    chosen = [row for row in rows if row["configuration"]["strategy"] == strategy]
    return [row["result"] for row in sorted(chosen, key=lambda row: row["configuration"]["seed"])]


def numbers(rows: Sequence[Row], strategy: str, value: Callable[[Result], float]) -> np.ndarray:
    """A number of every result of a strategy, by seed."""
    return np.array([value(result) for result in results(rows, strategy)], float)


def best_accuracy(result: Result) -> float:
    return max(result["curves"]["test_accuracy"])


def overfitting_epoch(result: Result) -> int:
    """The epoch of the smallest test loss, counted from 1."""
    return int(np.argmin(result["curves"]["test_loss"])) + 1


def epochs_to(result: Result, accuracy: float) -> float:
    """The first epoch, counted from 1, with an accuracy as high; infinite if none has."""
    reached = np.flatnonzero(np.array(result["curves"]["test_accuracy"]) >= accuracy)
    return float(reached[0] + 1) if len(reached) else np.inf


def apart(result: Result) -> float:
    """The share of epochs in which D_w and D_b change in opposite directions."""
    changes = [np.diff(result["curves"][name]) for name in ("D_w", "D_b")]
    return float(np.mean(changes[0] * changes[1] < 0))


def balance(result: Result) -> float:
    """The mean over epochs of the log of weight over bias-like update norm."""
    return float(np.mean(np.log(np.array(result["curves"]["update_w"]) / np.array(result["curves"]["update_b"]))))


def centre(result: Result, *, of_norms: bool) -> float:
    """The mean epoch, weighted by update norms, of normalisation or of the head's bias."""
    chosen = [v for layer, v in result["bias_updates"].items() if layer.startswith("classifier") != of_norms]
    norms = np.sqrt(np.square(np.array(chosen, float)).sum(0))
    return float((np.arange(1, len(norms) + 1) * norms).sum() / norms.sum())


def gain(rows: Sequence[Row], strategy: str) -> statistics.Mean:
    """In best accuracy over the baseline, paired by seed."""
    return statistics.mean_of(
        (numbers(rows, strategy, best_accuracy) - numbers(rows, BASELINE, best_accuracy)).tolist()
    )


def verdict_on_gains(rows: Sequence[Row]) -> str:
    """By RULE."""
    gains = [gain(rows, strategy) for strategy in FALLING]
    if min(found.mean for found in gains) <= 0:
        return statistics.NOT_CONFIRMED
    return statistics.CONFIRMED if all(map(statistics.differs, gains)) else statistics.INCONCLUSIVE


def epochs_to_baseline(rows: Sequence[Row], strategy: str) -> np.ndarray:
    """Epochs until the baseline's best accuracy with the same seed, by seed."""
    best = numbers(rows, BASELINE, best_accuracy)
    return np.array([epochs_to(result, of_seed) for result, of_seed in zip(results(rows, strategy), best, strict=True)])


def parts(rows: Sequence[Row]) -> dict[str, str]:
    """Verdicts by RULES, each with what was measured."""
    fast, usual = (epochs_to_baseline(rows, strategy) for strategy in ("p 0.6 to 0.5", BASELINE))
    missed = int(np.isinf(fast).sum())
    ratio = fast[np.isfinite(fast)].sum() / usual[np.isfinite(fast)].sum() if missed < len(fast) else np.inf
    if missed > len(fast) / 2 or ratio >= 1:
        faster = statistics.NOT_CONFIRMED
    else:
        faster = statistics.CONFIRMED if not missed and ratio <= 0.5 else statistics.INCONCLUSIVE
    opposite = statistics.mean_of(numbers(rows, BASELINE, apart).tolist())
    above = statistics.mean_of((numbers(rows, BASELINE, apart) - APART).tolist())
    if above.mean <= 0:
        asynchronous = statistics.NOT_CONFIRMED
    else:
        asynchronous = statistics.CONFIRMED if statistics.differs(above) else statistics.INCONCLUSIVE
    pairs = [*((falling, matched) for matched, falling in MATCHED.items()), (ALGORITHM_1, BASELINE)]
    shifts = {
        one: statistics.mean_of((numbers(rows, one, balance) - numbers(rows, other, balance)).tolist())
        for one, other in pairs
    }
    differ = all(map(statistics.differs, shifts.values()))
    moved = {
        falling: [
            statistics.mean_of((numbers(rows, falling, of) - numbers(rows, matched, of)).tolist())
            for of in (functools.partial(centre, of_norms=True), functools.partial(centre, of_norms=False))
        ]
        for matched, falling in MATCHED.items()
    }
    together = all(
        norms.mean * head.mean > 0 and statistics.differs(norms) and statistics.differs(head)
        for norms, head in moved.values()
    )
    yes_no = {True: statistics.CONFIRMED, False: statistics.NOT_CONFIRMED}
    told_shifts = ", ".join(f"{name} {shift}" for name, shift in shifts.items())
    told_moves = ", ".join(f"{name}: norms {norms}, head {head}" for name, (norms, head) in moved.items())
    return {
        "faster": f"{faster} ({ratio:.2f} of the baseline's epochs, missed with {missed} of {len(fast)} seeds)",
        "prediction 3": f"{asynchronous} (opposite changes in {opposite} of epochs)",
        "prediction 4": f"{yes_no[differ]} (change of mean log update ratio: {told_shifts})",
        "prediction 5": f"{yes_no[together]} (epochs that update norms move by: {told_moves})",
    }


def judge(rows: Sequence[Row], given: Options) -> Verdict:
    """By RULE, and by RULES for the rest."""
    told = ", ".join(
        f"{name} {100 * gain(rows, name).mean:+.2f} ± {100 * gain(rows, name).spread:.2f}" for name in STRATEGIES[1:]
    )
    best = statistics.mean_of((100 * numbers(rows, BASELINE, best_accuracy)).tolist())
    return Verdict(
        number=8,
        claim="Dynamic p raises the best accuracy, and gets there sooner",
        paper="RAF-DB 92.21 to 92.37 (0.45 to 0.35), AffectNet7 67.49 to 67.61 (0.6 to 0.5), with half of the "
        "steps; one run each",
        rule=f"{RULE}. {' '.join(f'{name}: {rule}.' for name, rule in RULES.items())}",
        measured=f"best accuracy {best} % with p = 0.5; percentage points more: {told}",
        verdict=verdict_on_gains(rows),
        seeds=given.seeds,
        size=given.size,
        parts=parts(rows),
        figures={
            strategy: {
                "best accuracy": str(statistics.mean_of(numbers(rows, strategy, best_accuracy).tolist())),
                "epochs to the baseline's best": [str(epochs) for epochs in epochs_to_baseline(rows, strategy)],
                "epoch of the smallest test loss": str(
                    statistics.mean_of(numbers(rows, strategy, overfitting_epoch).tolist())
                ),
                "last p": str(statistics.mean_of(numbers(rows, strategy, lambda r: r["curves"]["p"][-1]).tolist())),
                **(
                    {"update size matched within": float(numbers(rows, strategy, lambda r: r["matched_within"]).max())}
                    if strategy in MATCHED
                    else {}
                ),
            }
            for strategy in STRATEGIES
        },
    )


def draw(rows: Sequence[Row], given: Options) -> None:
    """Fig. 6, with p, the update ratio and the test loss beside it."""
    wanted = (
        ("test_accuracy", "test accuracy"),
        ("test_loss", "test loss"),
        ("p", "p"),
        ("update_w", "weight / bias-like update norm"),
    )
    with figures.panels(1, len(wanted), width=3.6) as (figure, (panels,)):
        for axes, (name, title) in zip(panels, wanted, strict=True):
            for i, strategy in enumerate(STRATEGIES):
                curves = [r["result"]["curves"] for r in rows if r["configuration"]["strategy"] == strategy]
                values = np.array([curve[name] for curve in curves], float)
                if name == "update_w":
                    values = values / np.array([curve["update_b"] for curve in curves], float)
                style = "--" if strategy in MATCHED else "-"
                epochs = np.arange(1, values.shape[1] + 1)
                figures.band(axes, epochs, values, color=f"C{i}", linestyle=style, label=strategy)
            axes.set(title=title, xlabel="epoch")
        panels[0].legend(fontsize=6)
        figures.save(figure, given.directory / "figure.png")


CLAIM = Claim(NAME, __doc__, configurations, run, judge, draw, ROWS, FULL_NEEDS)

if __name__ == "__main__":
    CLAIM.main()
