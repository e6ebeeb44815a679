"""Draws of Fashion-MNIST, another one for every split: images to train on, to choose settings with, and to test on.

The digits and CIFAR are drawn alike.

Debian's package `dataset-fashion-mnist` has the files; `scripts/fashion_mnist` fetches and checks them.
"""

import functools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from _common.entry_point import RecipeError
from _common.image_data import LabelledImages, cifar10, cifar100, digits, fashion_mnist

from .options import Option

PLACES = (Path("/usr/share/datasets/fashion-mnist"), Path(__file__).resolve().parents[3] / "runs" / "fashion-mnist")
"""Where the files are looked for: Debian's directory, and that of `scripts/fashion_mnist`."""
DATA = Option("data", "fashion-mnist, or digits, scikit-learn's, for where those files are not", quick="fashion-mnist")
DIRECTORY = Option(
    "fashion_mnist_dir", "Fashion-MNIST's idx files (default: Debian's, or runs/fashion-mnist)", quick=""
)
Images = tuple[Tensor, Tensor]
"""(N, height, width, channels), standardised, and classes (N,)."""


def drawn(
    data: str, directory: str, split: int, *, train: int, validation: int, test: int, pixels: int
) -> dict[str, Images]:
    """`train`, `validation` and `test` images of a split; the first two have no image in common.

    Fashion-MNIST's test images come from its own test set. The digits have no other size than their 8 x 8 pixels, and
    as many to test on as are left.
    """
    random = np.random.default_rng(split)
    own, other = _sets(data, directory)
    order = random.permutation(len(own))
    rest = (other, random.permutation(len(other))[:test]) if other else (own, order[train + validation :][:test])
    parts = {
        "train": (own, order[:train]),
        "validation": (own, order[train : train + validation]),
        "test": rest,
    }
    found = {name: (_pixels(source, rows, pixels), source.labels[rows]) for name, (source, rows) in parts.items()}
    mean, std = (of(found["train"][0], (0, 1, 2)) for of in (torch.mean, torch.std))
    return {name: ((images - mean) / std, torch.from_numpy(labels)) for name, (images, labels) in found.items()}


def _pixels(source: LabelledImages, rows: np.ndarray, pixels: int) -> Tensor:
    # Not a stack of arrays, which must not be empty: a full run trains on all images, and validates on none.
    images = torch.from_numpy(np.asarray(source.images)[rows]).float() / 255
    images = images[..., None] if images.ndim == 3 else images
    times = images.shape[1] // pixels
    if times > 1:
        images = torch.nn.functional.avg_pool2d(images.movedim(-1, 1), times).movedim(1, -1).contiguous()
    return images


@functools.cache
def _sets(data: str, directory: str) -> tuple[LabelledImages, LabelledImages | None]:
    if data == "digits":
        return digits().train, None
    if data != "fashion-mnist":
        if not Path(data).is_dir():
            raise RecipeError(f"--data must be fashion-mnist, digits or a directory of CIFAR, got {data!r}; see --help")
        found = (cifar100 if Path(data, "meta").is_file() else cifar10)(data)
        return found.train, found.validation
    places = [Path(directory)] if directory else [place for place in PLACES if place.is_dir()]
    if not places:
        raise RecipeError(
            "Fashion-MNIST must be there, got nothing in "
            f"{' or '.join(map(str, PLACES))}; run scripts/fashion_mnist, give --fashion_mnist_dir, or --data digits"
        )
    images = fashion_mnist(str(places[0]))
    return images.train, images.validation
