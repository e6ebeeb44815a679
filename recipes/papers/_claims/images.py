"""Images of a claim, in memory, as a network takes them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import BaseImageProcessor

from _common.entry_point import RecipeError
from _common.image_data import (
    LabelledImages,
    ProcessedImages,
    ToPixels,
    cifar10,
    cifar100,
    digits,
    image_folder,
    train_and_validation,
)


class Pixels(Dataset[dict[str, Tensor]]):
    """Standardised images and classes. augment: what a training image becomes, anew every time it is asked for."""

    def __init__(self, pixels: Tensor, labels: Tensor, augment: Callable[[Tensor], Tensor] | None = None) -> None:
        self.pixels, self.labels, self.augment = pixels, labels, augment

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        pixels = self.pixels[index]
        return {"pixel_values": self.augment(pixels) if self.augment else pixels, "labels": self.labels[index]}

    def as_they_are(self) -> "Pixels":
        """The same images without augmentation: the paper's clean train set."""
        return Pixels(self.pixels, self.labels)


class Decoded(ProcessedImages):
    """Images that are decoded when they are asked for; none is augmented."""

    def as_they_are(self) -> "Decoded":
        return self


@dataclass(frozen=True)
class Images:
    """What a network is trained on and tested on."""

    classes: int
    channels: int
    train: Pixels | Decoded
    test: Pixels | Decoded


def embedded_digits(classes: range, test_share: float) -> Images:
    """scikit-learn's digits, of which `test_share` of every class is held out: the same ones for every seed."""
    train, test = train_and_validation(digits(classes), test_share, torch.from_numpy)
    return _standardised(_rows_of(train), _rows_of(test), classes=len(classes), augment=None)


def cifar(directory: str) -> Images:
    """CIFAR-10 or CIFAR-100, whichever the directory holds, with crops and flips of the training images."""
    images = (cifar100 if Path(directory, "meta").is_file() else cifar10)(directory)
    return _standardised(images.train, images.validation, classes=len(images.class_names), augment=crop_or_flip)


def image_folders(directory: str, processor: BaseImageProcessor) -> Images:
    """A directory of images in train/ and test/ (or validation/, val/), as the model's image processor makes them."""
    images = image_folder(directory)
    if images.validation is None:
        raise RecipeError(
            f"--image_folder must have train/ and test/, got {directory!r}, which has train/ alone; add test/"
        )
    to_pixels = ToPixels(processor)
    train, test = (Decoded(part, np.arange(len(part)), to_pixels) for part in (images.train, images.validation))
    return Images(len(images.class_names), to_pixels.channels, train, test)


def crop_or_flip(pixels: Tensor) -> Tensor:
    """A crop of the original size out of 4 pixels of padding, and half of the time its mirror image."""
    height, width = pixels.shape[1:]
    padded = torch.nn.functional.pad(pixels, (4, 4, 4, 4))
    top, left, mirrored = torch.randint(9, ()), torch.randint(9, ()), torch.rand(()) < 0.5
    crop = padded[:, top : top + height, left : left + width]
    return crop.flip(-1) if mirrored else crop


def _rows_of(images: ProcessedImages) -> LabelledImages:
    return LabelledImages(
        np.stack([images.source.images[row] for row in images.rows]), images.source.labels[images.rows]
    )


def _standardised(
    train: LabelledImages, test: LabelledImages, *, classes: int, augment: Callable[[Tensor], Tensor] | None
) -> Images:
    pixels = [_channels_first(np.asarray(part.images)) for part in (train, test)]
    mean = pixels[0].mean((0, 2, 3), keepdim=True)
    std = pixels[0].std((0, 2, 3), keepdim=True)
    labels = [torch.from_numpy(part.labels) for part in (train, test)]
    found = [Pixels((images - mean) / std, classes_) for images, classes_ in zip(pixels, labels, strict=True)]
    found[0].augment = augment
    return Images(classes, pixels[0].shape[1], *found)


def _channels_first(images: np.ndarray) -> Tensor:
    """Images of shape (N, C, H, W), in [0, 1]."""
    tensor = torch.from_numpy(images).float() / 255
    return tensor.unsqueeze(1) if tensor.ndim == 3 else tensor.movedim(-1, 1).contiguous()
