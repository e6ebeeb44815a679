"""The sweep behind claims 4 to 7 and 9: a BatchNorm network trained with a fixed p, over p, learning rate and seed."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from transformers import set_seed

import _recipes_on_path  # noqa: F401
from _claims.images import Images, cifar, embedded_digits
from _claims.networks import RESNET18, SMALL, resnet
from _claims.options import Options
from _claims.rows import Configuration, Result, Row
from _claims.training import Optimization, train

ROWS = "networks"
FULL_NEEDS = ("data_dir",)
EXPONENTS = (-0.4, -0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3)
PAPERS_RATES = (0.01, 0.1)
QUICK_RATES = (*PAPERS_RATES, 1.0)
"""The quick runs have a hundredth of the paper's steps: with 1.0, small p gets as far as in the paper."""
TEST_SHARE = 0.95
"""Of the digits: nine of a class are left to train on, and the test error is near the paper's 22 %, so that losses have
a tail. With half of the digits to train on it was 2 %."""
MATCHED_RATES = (0.001, 0.01)
"""With the update scale matched, learning rates mean what they mean to Adam."""


def learning_rates(given: Options) -> tuple[float, ...]:
    return PAPERS_RATES if given.full else QUICK_RATES


def configuration(given: Options, optimization: Optimization, seed: int) -> Configuration:
    """All that decides a run."""
    size = (
        {"data": given.data_dir, "network": dataclasses.asdict(RESNET18)}
        if given.full
        else {"data": "digits", "test_share": TEST_SHARE, "network": dataclasses.asdict(SMALL)}
    )
    return {"size": given.size, **size, **dataclasses.asdict(sized(given, optimization)), "seed": seed}


def sized(given: Options, optimization: Optimization) -> Optimization:
    """With the paper's 200 epochs and a batch of 128 in a full run."""
    return dataclasses.replace(optimization, epochs=200, batch_size=128) if given.full else optimization


def configurations(
    given: Options,
    exponents: Iterable[float] = EXPONENTS,
    rates: Iterable[float] | None = None,
    lr_scheduler: str = "cosine",
    update_scale: str = "raw",
) -> list[Configuration]:
    """Every p, learning rate and seed."""
    return [
        configuration(given, Optimization(p, lr, lr_scheduler=lr_scheduler, update_scale=update_scale), seed)
        for lr in (learning_rates(given) if rates is None else rates)
        for p in exponents
        for seed in range(given.seeds)
    ]


def run(configuration: Configuration, given: Options) -> Result:
    """Train one network."""
    images = images_of(configuration)
    how = Optimization(**{field.name: configuration[field.name] for field in dataclasses.fields(Optimization)})
    set_seed(configuration["seed"])
    model = resnet(RESNET18 if configuration["size"] == "full" else SMALL, images.channels, images.classes)
    return train(model, images, how, configuration["seed"], given.device)


def images_of(configuration: Configuration) -> Images:
    """The digits, or a CIFAR directory."""
    if configuration["size"] == "full":
        return cifar(configuration["data"])
    return embedded_digits(range(10), configuration["test_share"])


def by_p(rows: Sequence[Row], value: Callable[[Result], float | None], **where: object) -> np.ndarray:
    """A number of the results by p in ascending order and seed, (p, seeds); NaN for None.

    where: what the configurations must have.
    """
    chosen = [row for row in rows if all(row["configuration"][key] == wanted for key, wanted in where.items())]
    found: dict[float, list[float]] = {}
    for row in sorted(chosen, key=lambda row: (row["configuration"]["p"], row["configuration"]["seed"])):
        number = value(row["result"])
        found.setdefault(row["configuration"]["p"], []).append(np.nan if number is None else number)
    return np.array(list(found.values()))


def final_ratio(result: Result) -> float | None:
    """G_w/G_b of the last epoch."""
    return result["curves"]["G_w_over_G_b"][-1]
