"""Whether a checkpoint directory was written to its end. Reads files, never tensors.

The Trainer writes the model first and trainer_state.json last, none of them atomically.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

_STATE = "trainer_state.json"
_TORCH_FILES = {".pt", ".pth", ".bin"}
_ZIP_START = b"PK\x03\x04"


def incompleteness(checkpoint: Path) -> str | None:
    """What is missing or cut off, in words; None where nothing is.

    A missing optimizer.pt is no sign: with `save_only_model` there is none.
    """
    try:
        json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"no {_STATE}"
    except ValueError:
        return f"{_STATE} is cut off"
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file() and _is_cut_off(path):
            return f"{path.relative_to(checkpoint)} is cut off"
    return None


def _is_cut_off(path: Path) -> bool:
    if path.suffix in _TORCH_FILES:
        return _is_cut_off_zip(path)
    return path.suffix == ".safetensors" and _is_cut_off_safetensors(path)


def _is_cut_off_zip(path: Path) -> bool:
    """torch.save writes a zip's directory last. Other formats (torch's old one, raw numbers) show no end."""
    with path.open("rb") as file:
        start = file.read(len(_ZIP_START))
    return _ZIP_START.startswith(start) and not zipfile.is_zipfile(path)


def _is_cut_off_safetensors(path: Path) -> bool:
    size = path.stat().st_size
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        if 8 + header_size > size:
            return True
        try:
            header = json.loads(file.read(header_size))
        except ValueError:
            return True
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return size < 8 + header_size + max(ends, default=0)
