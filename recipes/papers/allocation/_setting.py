"""The setting of the claims about fixed and moving p: networks that learn at every p, in a time that a CPU has.

Quick: a BatchNorm ResNet of 12, 24 and 48 channels, one block each, trained on 500 Fashion-MNIST images of 14 x 14
pixels for 1,200 steps, batches of 32, cosine decay, without augmentation or weight decay, and tested on 3,000; another
draw of images for every split. Larger ones by `--train_images`, `--width`, `--pixels`, `--epochs`. Full: ResNet-18 on
CIFAR, with crops and flips.

A claim uses it so, and its rows lie with those of every claim that asks for the same runs:

    def configurations(given):
        return [_setting.configuration(given, Training(p, lr=1.0, seed=seed), split=seed) for ...]

    CLAIM = Claim(..., configurations, _setting.RUN, judge, draw, _setting.folder_of, _setting.OPTIONS)

What a run returns is told by `stacked_training.train_together`, and what a row keeps of it by `kept`. A claim that
moves p, or chooses learning rates on the validation images, calls `train` with `move` or `tested_on="validation"` in
work of its own, a `WorkTogether`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import torch

from papers._claims import fashion
from papers._claims.networks import RESNET18, ResNetSize
from papers._claims.options import DATA_DIR, Option, Options
from papers._claims.rows import Configuration, Result
from papers._claims.stacked_networks import StackedNetworks
from papers._claims.stacked_training import Epochs, Move, Samples, Training, train_together
from papers._claims.sweep import WorkTogether

EXPONENTS = (-0.4, -0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3)
"""The paper's."""
CONVOLUTION, NORMALIZATION, CLASSIFIER = ".convolution.weight", ".normalization", "classifier.1.weight"
VALIDATION = 1000
"""Images to choose settings on, which are neither trained nor tested on."""
OPTIONS = (
    fashion.DATA,
    fashion.DIRECTORY,
    DATA_DIR,
    Option("train_images", "images to train on", int, quick=500, full=50000),
    Option("test_images", "images to test on", int, quick=3000, full=10000),
    Option("pixels", "side of an image, to which larger ones are averaged", int, quick=14, full=32),
    Option("width", "channels of the first stage; the next have twice as many each", int, quick=12, full=64),
    Option("epochs", "passes over the images, whole batches each", int, quick=80, full=200),
    Option("batch_size", "images in a batch", int, quick=32, full=128),
)


def options(quick: Mapping[str, int], full: Mapping[str, int]) -> tuple[Option, ...]:
    """OPTIONS with other values."""
    return tuple(
        dataclasses.replace(one, quick=quick.get(one.name, one.quick), full=full.get(one.name, one.full))
        for one in OPTIONS
    )


def configuration(given: Options, training: Training, split: int) -> Configuration:
    """All that decides a run. split: which draw of images."""
    return {
        "size": given.size,
        "data": given["data_dir"] if given.full else given["data"],
        **{name: given[name] for name in ("train_images", "test_images", "pixels", "epochs", "batch_size")},
        "network": dataclasses.asdict(_network(given)),
        "split": split,
        **dataclasses.asdict(training),
    }


def _network(given: Options) -> ResNetSize:
    stages = len(RESNET18.widths) if given.full else 3
    widths = tuple(given["width"] * 2**stage for stage in range(stages))
    return ResNetSize(widths, RESNET18.blocks if given.full else (1,) * stages)


def run_together(configurations: Sequence[Configuration], given: Options) -> list[Result]:
    """Runs of one size, at once, as `kept`; half of them where the device has no room for all."""
    epochs = configurations[0]["epochs"]
    try:
        found = train(configurations, given, measured_after=sorted({max(epochs // 2, 1), epochs}))
        return [kept(result) for result in found]
    except torch.OutOfMemoryError:
        if len(configurations) == 1:
            raise
    torch.cuda.empty_cache()
    half = len(configurations) // 2
    return [one for part in (configurations[:half], configurations[half:]) for one in run_together(part, given)]


RUN = WorkTogether(run_together)


def kept(result: Result) -> Result:
    """What a row of a fixed p keeps of a result: about twenty epochs, the last among them, and layers by name.

    layers: of each, the mean norms in the last epoch of its weight's gradient and of that of its bias-like parameters,
    and the norm of its weight. A convolution's are those of the normalisation that follows it: by Table 1 that has
    nothing weight-like. names: as `short`.
    """
    names = ("curves", "measured", "hard", "samples", "eps_share")
    return {name: result[name] for name in names} | {
        "curves": {name: thinned(curve) for name, curve in result["curves"].items()},
        "layers": by_layer(result["layers"]["G"], result["layers"]["norm"]),
    }


def thinned(curve: Sequence[float | None]) -> list[float | None]:
    """About twenty epochs of a curve, at equal distances up to the last."""
    return list(curve[:: -max(len(curve) // 20, 1)][::-1])


def by_layer(
    gradients: dict[str, float | None], norms: dict[str, float | None]
) -> dict[str, tuple[float | None, float | None, float | None]]:
    """By layer, from the input to the output; see `kept`."""
    found = {}
    for name in gradients:
        if name.endswith(CONVOLUTION):
            normalization = name.replace(CONVOLUTION, NORMALIZATION)
            biases = [gradients[f"{normalization}.{kind}"] for kind in ("weight", "bias")]
        elif name == CLASSIFIER:
            biases = [gradients[name.replace("weight", "bias")]]
        else:
            continue
        bias_like = None if None in biases else float(f"{math.hypot(*biases):.4g}")
        found[short(name)] = (gradients[name], bias_like, norms[name])
    return found


def short(name: str) -> str:
    """A layer's name without what all of them have."""
    for long, brief in (
        ("resnet.", ""),
        ("encoder.stages.", "stage "),
        (".layers.", "."),
        (".layer.", " conv "),
        (CONVOLUTION, ""),
        ("embedder.embedder", "stem"),
        (CLASSIFIER, "classifier"),
    ):
        name = name.replace(long, brief)
    return name


def folder_of(configuration: Configuration) -> str:
    """The folder of a row that several claims read."""
    if "strategy" in configuration:
        return "dynamic_p"
    if configuration["seed"] != configuration["split"]:
        return "hard_samples"
    if configuration["lr_scheduler"] == "constant":
        return "lr_decay"
    return "gradient_ratio" if configuration["update_scale"] == "raw" else "own_effect"


def train(
    configurations: Sequence[Configuration],
    given: Options,
    *,
    tested_on: str = "test",
    move: Move | None = None,
    measured_after: Sequence[int] | None = None,
    validated_every: int | None = None,
) -> list[Result]:
    """Train networks of one size together; the results of `train_together`.

    tested_on: test or validation. measured_after: epochs; None: each quarter of training. validated_every: so many
    epochs, on the validation images; None: never.
    """
    one = configurations[0]
    drawn = {split: _images(one, given, split) for split in {each["split"] for each in configurations}}
    train, test, validation = (
        _stacked([drawn[each["split"]][part] for each in configurations], given.device)
        for part in ("train", tested_on, "validation")
    )
    size = ResNetSize(*(tuple(one["network"][name]) for name in ("widths", "blocks")))
    trainings = [training_of(configuration) for configuration in configurations]
    classes = int(max(train.labels.max(), test.labels.max())) + 1
    networks = StackedNetworks(
        size, train.pixels.shape[-1], classes, [training.seed for training in trainings], given.device
    )
    epochs = one["epochs"]
    at = measured_after or sorted({max(epochs * quarter // 4, 1) for quarter in range(1, 5)})
    how = Epochs(
        epochs, one["batch_size"], tuple(at), validated_every=validated_every or 1, augment=one["size"] == "full"
    )
    return train_together(networks, trainings, train, test, how, move, None if validated_every is None else validation)


def training_of(configuration: Configuration) -> Training:
    """How the network of a configuration is trained."""
    return Training(**{field.name: configuration[field.name] for field in dataclasses.fields(Training)})


def _images(one: Configuration, given: Options, split: int) -> dict[str, fashion.Images]:
    return fashion.drawn(
        one["data"],
        given["fashion_mnist_dir"],
        split,
        train=one["train_images"],
        validation=VALIDATION,
        test=one["test_images"],
        pixels=one["pixels"],
    )


def _stacked(images: Sequence[fashion.Images], device: str) -> Samples:
    pixels, labels = (torch.stack(parts).to(device) for parts in zip(*images, strict=True))
    return Samples(pixels, labels)
