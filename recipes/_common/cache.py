"""Directories that are built once and are never seen half built."""

import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock


def built_once(directory: Path, build: Callable[[Path], None]) -> Path:
    """Return ``directory``; where it does not exist, ``build`` fills it first.

    ``build`` writes into a sibling that is renamed when complete. Processes that race wait for
    the first one, and whatever a killed process left behind is swept away by the next.
    """
    if directory.is_dir():
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = directory.with_name(f"{directory.name}.partial")
    with FileLock(directory.with_name(f"{directory.name}.lock")):
        if directory.is_dir():
            return directory
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            build(partial)
            partial.rename(directory)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return directory
