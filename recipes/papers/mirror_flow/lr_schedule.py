"""Claim 7: cumulative learning rate, not its schedule, moves nuc/fro of K^T Q (TMF Appendix C, Figs. 10 and 11).

    python recipes/claim.py lr_schedule
    python recipes/claim.py lr_schedule --full --device cuda --image_folder imagenet

Fine-tuning a pretrained ViT with AdamW at 1e-4, and with SGD, at a constant learning rate or under a cosine with warm
restarts, over weight decay; nuclear over Frobenius norm of K^T Q, from norms averaged over layers, against the sum of
the learning rate, which is -a_t over weight decay.

The paper's: AdamW's learning rate, both schedules, the largest decay of its range (0.001 to 0.01). Ours: the number of
restarts, SGD's learning rate (the paper does not tell it), and in quick runs a network of two layers of 32 pretrained
here on the digits 0 to 4 and fine-tuned on half of 5 to 9, in place of ViT-tiny on ImageNet, and 300 steps. In so few,
a decay of 0.01 takes a_t to -0.0003, which no ratio can show: 30 stands beside it, for SGD what gives the same a_t.
A pilot with one seed chose sizes, decays and SGD's learning rate. --full: a ViT-tiny from the hub, folders of images.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageClassification, set_seed

from _common.heads import with_new_head
from _common.image_data import ProcessedImages, ToPixels, digits, train_and_validation
from _common.pretrained_vit import ViTPretrainingSettings, vit_checkpoint
from hf_pdyn.sweep import statistics
from hf_pdyn.sweep.outcome import ALL_RULE, Outcome, all_of
from papers._claims import figures
from papers._claims.claim import Claim
from papers._claims.images import Images, Pixels, image_folders
from papers._claims.options import IMAGE_FOLDER, Option, Options
from papers._claims.rows import Configuration, Result, Row, chosen
from papers._claims.verdict import Part, Verdict
from papers.mirror_flow._training import Training, train

RATES = {"adamw": 1e-4, "sgd": 0.03}
DECAYS = (0.01, 30.0)
"""With AdamW; with SGD less, so that a_t is the same."""
CONSTANT, RESTARTS = "constant", "restarts"
CYCLES, RECORDS = 3, 15
RATIO, ACCURACY = 1.02, 0.01
SMALL = ViTPretrainingSettings(image_size=8, patch_size=2, hidden_size=32, n_layer=2, steps=300)
OPTIONS = (
    IMAGE_FOLDER,
    Option("model_name_or_path", "the pretrained ViT, hub name or directory", full="WinKawaks/vit-tiny-patch16-224"),
    Option("steps", "steps of training", int, quick=300, full=25_000),
    Option("batch_size", "images in a batch", int, quick=32, full=256),
)
RULE = f"""With AdamW and with SGD, all of: test accuracy at the end, mean over decays, is higher with restarts than at
a constant learning rate; the log ratio at the end, at a constant learning rate, is smaller with the larger decay; at
the sum of learning rates with which restarts end, the log ratios of both schedules are equal (mean over decays;
expected 0, tolerance log {RATIO:g}; the constant one's by linear interpolation). A part of its own for each (ours):
the sum is the better clock: at equal steps, the end, log ratios of the schedules are farther apart than at equal sums.
Bounds: a factor of {RATIO:g}, {ACCURACY:g} of accuracy. {statistics.EFFECT_RULE} {statistics.AGREEMENT_RULE}
{ALL_RULE}"""


def configurations(given: Options) -> list[Configuration]:
    """Every optimizer, schedule and decay."""
    sizes = {"model": given["model_name_or_path"] or "small", "data": given["image_folder"] or "digits"}
    sizes |= {"cycles": CYCLES, **{name: given[name] for name in ("steps", "batch_size")}}
    return [
        {**sizes, "optimizer": optimizer, "lr": lr, "schedule": schedule, "decay": decay, "seed": seed}
        for optimizer, lr in RATES.items()
        for schedule in (CONSTANT, RESTARTS)
        for decay in DECAYS
        for seed in range(given.seeds)
    ]


def run(configuration: Configuration, given: Options) -> Result:
    """Fine-tune one network."""
    checkpoint = configuration["model"]
    if checkpoint == "small":
        checkpoint = str(vit_checkpoint(SMALL, device=given.device, show_progress=False))
    images = _images(checkpoint, configuration["data"])
    set_seed(configuration["seed"])
    steps, optimizer = configuration["steps"], configuration["optimizer"]
    training = Training(
        optimizer=optimizer,
        lr=configuration["lr"],
        weight_decay=configuration["decay"] * RATES["adamw"] / RATES[optimizer],
        cycles=configuration["cycles"] if configuration["schedule"] == RESTARTS else None,
        steps=steps,
        batch_size=configuration["batch_size"],
        every=max(steps // RECORDS, 1),
    )
    pretrained = AutoModelForImageClassification.from_pretrained(checkpoint)
    model: nn.Module = with_new_head(pretrained, tuple(map(str, range(images.classes))))
    seed = configuration["seed"]
    return train(model, images.train, images.test, training, "attention", seed, given.device, accuracy=True)


@functools.cache
def _images(checkpoint: str, data: str) -> Images:
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    if data != "digits":
        return image_folders(data, processor)
    halves = train_and_validation(digits(range(5, 10)), 0.5, ToPixels(processor))
    return Images(5, 3, *map(_in_memory, halves))


def _in_memory(images: ProcessedImages) -> Pixels:
    found = [images[i] for i in range(len(images))]
    return Pixels(torch.stack([one["pixel_values"] for one in found]), torch.tensor([one["labels"] for one in found]))


def of_runs(rows: Sequence[Row], optimizer: str, schedule: str, decay: float, name: str = "ratio") -> np.ndarray:
    """A curve of a setting's runs, (seeds, records)."""
    found = chosen(rows, optimizer=optimizer, schedule=schedule, decay=decay)
    return np.array([row["result"][name] for row in found], float)


def sums(rows: Sequence[Row], optimizer: str, schedule: str, decay: float) -> np.ndarray:
    """The sum of the learning rate up to every record, in units of AdamW's, from a_t; (records,)."""
    return -of_runs(rows, optimizer, schedule, decay, "a")[0] / (decay * RATES["adamw"])


def gaps(rows: Sequence[Row], optimizer: str, name: str = "ratio") -> tuple[np.ndarray, np.ndarray]:
    """What restarts end with less what a constant rate has, at equal sums and at equal steps; of the ratio, logarithms.

    Mean over decays, by seed.
    """
    at_sums, at_steps = [], []
    for decay in DECAYS:
        constant, restarts = (of_runs(rows, optimizer, schedule, decay, name) for schedule in (CONSTANT, RESTARTS))
        if name == "ratio":
            constant, restarts = np.log(constant), np.log(restarts)
        x, end = sums(rows, optimizer, CONSTANT, decay), sums(rows, optimizer, RESTARTS, decay)[-1]
        at_sums.append(restarts[:, -1] - [np.interp(end, x, of_seed) for of_seed in constant])
        at_steps.append(restarts[:, -1] - constant[:, -1])
    return np.mean(at_sums, 0), np.mean(at_steps, 0)


def accuracy(rows: Sequence[Row], optimizer: str, schedule: str) -> np.ndarray:
    """Test accuracy at the end, mean over decays, by seed."""
    return np.mean([of_runs(rows, optimizer, schedule, decay, "test_accuracy")[:, -1] for decay in DECAYS], 0)


def claimed(rows: Sequence[Row], optimizer: str) -> dict[str, Part]:
    """What the paper says of an optimizer."""
    gain = statistics.mean_of(gaps(rows, optimizer, "test_accuracy")[1])
    small, large = (np.log(of_runs(rows, optimizer, CONSTANT, decay)[:, -1]) for decay in DECAYS)
    falls = statistics.mean_of(large - small)
    apart = statistics.mean_of(gaps(rows, optimizer)[0])
    bound = math.log(RATIO)
    return {
        "restarts are more accurate": Part(statistics.effect(gain, ACCURACY), f"accuracy by {gain}"),
        "more decay, smaller ratio": Part(
            statistics.effect(falls, bound, direction=-1), f"change of the log ratio {falls}"
        ),
        "equal sums of learning rates, equal ratios": Part(
            statistics.agreement(apart, 0.0, bound), f"log ratio with restarts against constant {apart}"
        ),
    }


def clock(rows: Sequence[Row], optimizer: str) -> Part:
    """Whether the sum of learning rates tells more of the ratio than the number of steps."""
    at_sums, at_steps = gaps(rows, optimizer)
    better = statistics.mean_of(np.abs(at_steps) - np.abs(at_sums))
    return Part(statistics.effect(better, math.log(RATIO)), f"log ratios nearer by {better}")


def judge(rows: Sequence[Row], given: Options) -> Verdict:
    """By RULE."""
    parts = {optimizer: claimed(rows, optimizer) for optimizer in RATES}
    told = ", ".join(
        f"{accuracy(rows, optimizer, RESTARTS).mean():.1%} against {accuracy(rows, optimizer, CONSTANT).mean():.1%} "
        f"({optimizer})"
        for optimizer in RATES
    )
    return Verdict(
        number=7,
        claim="The sum of learning rates, not their schedule, moves nuc/fro of K^T Q",
        paper="Figs. 10 and 11: accuracy is higher with warm restarts; the ratio falls, with more decay more; against "
        "the sum of learning rates it does so alike with both schedules",
        measured=f"accuracy with restarts against constant: {told}",
        verdict=all_of(_outcome(part) for of in parts.values() for part in of.values()),
        parts={
            f"{name}, {optimizer}": part
            for optimizer in RATES
            for name, part in {
                **parts[optimizer],
                "sums are a better clock than steps (ours)": clock(rows, optimizer),
            }.items()
        },
        figures={
            f"{optimizer}, accuracy with restarts against constant at equal sums": str(
                statistics.mean_of(gaps(rows, optimizer, "test_accuracy")[0])
            )
            for optimizer in RATES
        }
        | {
            f"{optimizer}, {schedule}, decay {decay:g}": {
                "a_t at the end": str(statistics.mean_of(of_runs(rows, optimizer, schedule, decay, "a")[:, -1])),
                **{
                    f"{name} {when}": str(statistics.mean_of(of_runs(rows, optimizer, schedule, decay, name)[:, place]))
                    for name in ("ratio", "test_accuracy")
                    for when, place in (("at the first record", 0), ("at the end", -1))
                },
            }
            for optimizer in RATES
            for schedule in (CONSTANT, RESTARTS)
            for decay in DECAYS
        },
    )


def _outcome(part: Part) -> Outcome:
    assert isinstance(part.verdict, Outcome)
    return part.verdict


def draw(rows: Sequence[Row], given: Options) -> None:
    """Figs. 10 and 11: ratio and test accuracy over the sum of learning rates; constant solid, restarts dashed."""
    titles = {"adamw": "AdamW", "sgd": "SGD"}
    with figures.panels(2, len(RATES), height=2.4, sharex="col", sharey="row") as (figure, grid):
        for (ratios, accuracies), optimizer in zip(grid.T, RATES, strict=True):
            for decay, colour in zip(DECAYS, figures.colours(len(DECAYS)), strict=True):
                for schedule, linestyle in ((CONSTANT, "-"), (RESTARTS, "--")):
                    x = sums(rows, optimizer, schedule, decay) * RATES["adamw"]
                    for axes, name in ((ratios, "ratio"), (accuracies, "test_accuracy")):
                        values = of_runs(rows, optimizer, schedule, decay, name)
                        label = f"{schedule}, decay {decay:g}"
                        figures.band(axes, x, values, color=colour, linestyle=linestyle, label=label)
            ratios.set(title=f"{titles[optimizer]}, learning rate {RATES[optimizer]:g}")
            accuracies.set(xlabel="sum of learning rates" + (" x 1e-4 / 0.03" if optimizer == "sgd" else ""))
        grid[0, 0].set_ylabel("nuc / fro of K^T Q")
        grid[1, 0].set_ylabel("test accuracy")
        figures.legend(figure, columns=2)
        figures.save(figure, given.directory / "figure.png")


CLAIM = Claim(__name__, __doc__, RULE, configurations, run, judge, draw, options=OPTIONS)
