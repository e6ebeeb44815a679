"""Directories such as those of CIFAR, pickled as in 2009, of random images."""

import io
import pickle
import struct
from pathlib import Path
from typing import Any, ClassVar

import numpy as np


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """Writes strings and bytes as Python 2 wrote its `str`, as they are in the files of 2009."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_string(self, text: Any) -> None:
        content = text.encode("latin-1") if isinstance(text, str) else text
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(text)

    dispatch[bytes] = dispatch[str] = save_string

    def save_reduce(self, func: Any, args: Any, *rest: Any, **named: Any) -> None:
        if getattr(func, "__name__", "") == "encode":  # how Python 3 writes bytes in protocol 2
            return self.save_string(args[0])
        return super().save_reduce(func, args, *rest, **named)


def python2_pickle(content: Any) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(content)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def write_cifar(folder: Path, per_batch: int = 4) -> dict[str, np.ndarray]:
    meta = {b"label_names": [b"airplane", b"automobile", b"bird"], b"num_vis": 3072}
    (folder / "batches.meta").write_bytes(python2_pickle(meta))
    random = np.random.default_rng(0)
    written = {}
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        written[name] = random.integers(256, size=(per_batch, 3072), dtype=np.uint8)
        batch = {b"data": written[name], b"labels": [0, 1, 2, 0][:per_batch], b"filenames": [b"x.png"] * per_batch}
        (folder / name).write_bytes(python2_pickle(batch))
    return written


def write_cifar100(folder: Path, count: int) -> dict[str, list[int]]:
    folder.mkdir(exist_ok=True)
    names = [f"class {i}".encode() for i in range(100)]
    meta = {b"fine_label_names": names, b"coarse_label_names": names[:20]}
    (folder / "meta").write_bytes(python2_pickle(meta))
    random = np.random.default_rng(0)
    written = {}
    for part in ("train", "test"):
        written[part] = random.integers(100, size=count).tolist()
        pixels = random.integers(256, size=(count, 3072), dtype=np.uint8)
        coarse = [label // 5 for label in written[part]]
        batch = {b"data": pixels, b"fine_labels": written[part], b"coarse_labels": coarse}
        (folder / part).write_bytes(python2_pickle(batch))
    return written
