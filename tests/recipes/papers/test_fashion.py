"""Draws of images."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from _common.entry_point import RecipeError
from papers._claims import fashion


def write_idx(path: Path, values: np.ndarray) -> None:
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    path.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes()))


def write_fashion(directory: Path, images: int = 40, tests: int = 20) -> Path:
    """Images of which each pixel says which image it is."""
    directory.mkdir()
    for part, count in (("train", images), ("t10k", tests)):
        number = np.arange(count)
        write_idx(directory / f"{part}-images-idx3-ubyte.gz", np.tile(number[:, None, None], (1, 28, 28)))
        write_idx(directory / f"{part}-labels-idx1-ubyte.gz", number % 10)
    return directory


def draw(directory: str, split: int) -> dict[str, fashion.Images]:
    return fashion.drawn("fashion-mnist", directory, split, train=12, validation=9, test=7, pixels=14)


def test_a_split_is_a_draw_of_its_own(tmp_path: Path) -> None:
    directory = str(write_fashion(tmp_path / "images"))
    one, again, other = (draw(directory, split) for split in (0, 0, 1))
    assert {name: tuple(images.shape) for name, (images, _) in one.items()} == {
        "train": (12, 14, 14, 1),
        "validation": (9, 14, 14, 1),
        "test": (7, 14, 14, 1),
    }
    for name, (images, labels) in one.items():
        assert (images == again[name][0]).all() and (labels == again[name][1]).all()
        assert not (images == other[name][0]).all()
    shown = {name: set(images[:, 0, 0, 0].tolist()) for name, (images, _) in one.items()}
    assert not shown["train"] & shown["validation"]
    assert abs(one["train"][0].mean()) < 1e-5 and one["train"][0].std() == pytest.approx(1)


def test_images_are_averaged_to_the_wanted_side(tmp_path: Path) -> None:
    directory = str(write_fashion(tmp_path / "images"))
    images, labels = draw(directory, 0)["train"]
    assert images.std((1, 2, 3)).max() < 1e-6
    brighter = images[:, 0, 0, 0].diff() > 0
    numbers = np.random.default_rng(0).permutation(40)[:12]
    assert labels.tolist() == (numbers % 10).tolist()
    assert brighter.tolist() == (np.diff(numbers) > 0).tolist()


def test_digits_stand_in() -> None:
    found = fashion.drawn("digits", "", 0, train=500, validation=100, test=3000, pixels=14)
    assert [len(labels) for _, labels in found.values()] == [500, 100, 1197]
    assert found["train"][0].shape == (500, 8, 8, 1)


def test_what_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion, "PLACES", (tmp_path / "absent",))
    with pytest.raises(RecipeError, match="run scripts/fashion_mnist, give --fashion_mnist_dir, or --data digits"):
        fashion.drawn("fashion-mnist", "", 7, train=1, validation=0, test=1, pixels=14)
    with pytest.raises(RecipeError, match="--data must be fashion-mnist, digits or a directory of CIFAR, got 'faces'"):
        fashion.drawn("faces", "", 0, train=1, validation=0, test=1, pixels=14)
