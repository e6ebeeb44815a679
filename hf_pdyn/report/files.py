"""A report's files on the disk: whole, or as they were before."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hf_pdyn.common.atomic import replacing


def write_whole(path: Path, content: bytes) -> None:
    """Write a file and rename it to its place; OSError, with path, reason and cure, where that cannot be."""
    try:
        with replacing(path) as unfinished:
            unfinished.write_bytes(content)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"{path} cannot be written: {reason}. Name a new file, or a regular one to replace.") from error


def write_all(folder: Path, files: Iterable[tuple[str, bytes]]) -> list[Path]:
    """Write files of these names and contents to a folder, each as `write_whole` does."""
    written = []
    for name, content in files:
        write_whole(folder / name, content)
        written.append(folder / name)
    return written
