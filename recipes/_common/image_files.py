"""Readers of image sets that are downloaded as files: CIFAR-10's pickles, and MNIST's idx format."""

import gzip
import pickle
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .entry_point import RecipeError

_IDX_UINT8 = 8
# All that numpy arrays in the CIFAR-10 files name. A pickle may name any function, and loading it calls that function.
_ARRAY_PARTS = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0] for core in ("core", "_core")},
}


def read_idx(path: Path) -> np.ndarray:
    """Return the uint8 array of an idx file, gzipped where its name ends in ``.gz``.

    The format is two zero bytes, a type, the number of dimensions, each as a big-endian uint32, then the values.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            content = file.read()
        zeros, kind, dimensions = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{dimensions}I", content, 4)
    except OSError as error:
        raise RecipeError(f"a data file must be readable, got {str(path)!r} ({error.strerror or error})") from error
    except (EOFError, struct.error, zlib.error) as error:
        raise RecipeError(f"a data file must be whole, got {str(path)!r} ({error}); fetch it again") from error
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions)
    if zeros != 0 or kind != _IDX_UINT8 or values.size != np.prod(shape, dtype=np.int64):
        raise RecipeError(
            f"a data file must be a whole idx file of bytes, got {str(path)!r} (type {kind}, shape {shape},"
            f" {values.size} values); fetch it again"
        )
    return values.reshape(shape)


def read_cifar_batch(path: Path) -> dict[str, Any]:
    """Return the dictionary of a CIFAR file, which Python 2 pickled; nothing but arrays and plain data is loaded."""
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file, encoding="bytes").load()
    except OSError as error:
        raise RecipeError(f"a data file must be readable, got {str(path)!r} ({error.strerror or error})") from error
    except Exception as error:  # bytes that are no such pickle can make the unpickler raise anything
        raise RecipeError(f"a data file must be one of CIFAR's, got {str(path)!r} ({error}); fetch it again") from error
    if not isinstance(content, Mapping):
        raise RecipeError(f"a data file must be one of CIFAR's, got a {type(content).__name__} in {str(path)!r}")
    return {_text(key): value for key, value in content.items()}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAY_PARTS:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no image set needs")
        return _ARRAY_PARTS[module, name]


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
