"""Whether a checkpoint directory was written to its end, and which is the newest that was. Reads files, never tensors.

The Trainer writes the model first and trainer_state.json last, none of them atomically.
"""

from __future__ import annotations

import json
import warnings
import zipfile
from pathlib import Path

CHECKPOINT_PREFIX = "checkpoint-"
STATE_FILE = "trainer_state.json"
_ZIP_START = b"PK\x03\x04"
_LONGEST_HEADER = 100_000_000
"""Bytes that the header of a safetensors file may have, by the format."""


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """The checkpoint with the highest step in `output_dir` that was written to its end; None where there is none.

    Pass it on: `trainer.train(resume_from_checkpoint=last_complete_checkpoint(output_dir))` resumes a run that was
    interrupted, and starts one that has not begun. With `True` the Trainer takes the highest step, whole or not. One
    warning names the checkpoints that were passed over.

    Example:
        >>> args.save_strategy, args.save_steps = "steps", 4
        >>> result = Trainer(model, args, train_dataset=data).train()
        >>> last_complete_checkpoint(args.output_dir)[-12:]
        'checkpoint-8'
    """
    folder = Path(output_dir)
    reasons: dict[str, str] = {}
    chosen: Path | None = None
    for checkpoint in _newest_first(folder):
        reason = incompleteness(checkpoint)
        if reason is None:
            chosen = checkpoint
            break
        reasons[checkpoint.name] = reason
    if reasons:
        passed_over = ", ".join(f"{name} ({reason})" for name, reason in reasons.items())
        warnings.warn(
            f"Incomplete checkpoints in {folder}, written by an interrupted run, are passed over: {passed_over}; "
            f"{f'{chosen.name} is used' if chosen else 'no other is left'}.",
            stacklevel=2,
        )
    return str(chosen) if chosen else None


def _newest_first(folder: Path) -> list[Path]:
    steps = [path.name.removeprefix(CHECKPOINT_PREFIX) for path in folder.glob(f"{CHECKPOINT_PREFIX}*")]
    paths = [
        folder / f"{CHECKPOINT_PREFIX}{step}" for step in sorted(filter(str.isdecimal, steps), key=int, reverse=True)
    ]
    return [path for path in paths if path.is_dir()]


def incompleteness(checkpoint: Path) -> str | None:
    """What is missing, cut off or damaged, in words; None where nothing is. Raises nothing.

    A missing optimizer.pt is no sign: with `save_only_model` there is none.
    """
    try:
        problem = _problem_of_state(checkpoint / STATE_FILE)
        if problem is not None:
            return problem
        for path in sorted(checkpoint.rglob("*")):
            if path.suffix in _PROBLEMS:
                problem = _problem_of_file(path)
                if problem is not None:
                    return f"{path.relative_to(checkpoint)} {problem}"
    except OSError as error:
        return f"it cannot be read: {error.strerror or error}"
    return None


def _problem_of_state(path: Path) -> str | None:
    if not path.is_file():
        return f"{path.name} is not a file" if path.exists() else f"no {path.name}"
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return f"{path.name} is cut off"
    except RecursionError:
        return f"{path.name} is damaged"
    # Without its step the Trainer would start at 0, with the checkpoint's weights.
    if not isinstance(state, dict) or type(state.get("global_step")) is not int:
        return f"{path.name} has no global_step"
    return None


def _problem_of_file(path: Path) -> str | None:
    if not path.is_file():
        return "is not a file"
    try:
        return _PROBLEMS[path.suffix](path)
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    except Exception:  # damage has no end of forms
        return "is damaged"


def _problem_of_zip(path: Path) -> str | None:
    """torch.save writes a zip's directory last. Other formats (torch's old one, raw numbers) show no end."""
    with path.open("rb") as file:
        start = file.read(len(_ZIP_START))
        if not _ZIP_START.startswith(start):
            return None
        if not zipfile.is_zipfile(file):
            return "is cut off"
        with zipfile.ZipFile(file) as archive:  # reads the directory
            archive.namelist()
    return None


def _problem_of_safetensors(path: Path) -> str | None:
    size = path.stat().st_size
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        if 8 + header_size > size:
            return "is cut off"
        if header_size > _LONGEST_HEADER:
            return "is damaged"
        header = json.loads(file.read(header_size))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return "is cut off" if size < 8 + header_size + max(ends, default=0) else None


_PROBLEMS = {
    ".bin": _problem_of_zip,
    ".pt": _problem_of_zip,
    ".pth": _problem_of_zip,
    ".safetensors": _problem_of_safetensors,
}
"""What can be wrong with a file, in words, by its suffix."""
